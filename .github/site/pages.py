"""Make the site's pages out of what the repository already says; mkdocs-gen-files runs this file.

A package's pages are its README, its guides, the changelog with what has landed since, and the
docstrings of what its `__all__` lists. Links between files of the repository become links between
pages, or lead to the file where it is no page.
"""

import ast
import os
import posixpath
import re
import sys
from pathlib import Path

import mkdocs_gen_files

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from workspace import ADDRESS, PACKAGES, ROOT

LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?(\))")
# What a package has beside its README, in the order of the navigation.
GUIDES = (
    "GUIDE.md",
    "PARTITIONS.md",
    "RESULTS.md",
    "evidence/README.md",
    "docs/*.md",
    "evidence/*.md",
)
TITLES = {
    "RESULTS.md": "Results",
    "PARTITIONS.md": "Partitions",
    "GUIDE.md": "Guide",
    "evidence/README.md": "Evidence",
}
# Modules that are public beside the package itself.
MODULES = {
    "stam-core": ("stam_core.int8", "stam_core.noise", "stam_core.reference"),
    "stam-jax": ("stam_jax.descent",),
    "optim-checkpoint": ("optim_checkpoint.jax", "optim_checkpoint.torch"),
}


def guides(package: str) -> list[str]:
    """Return the paths of a package's guides, below its folder."""
    folder = ROOT / "packages" / package
    found = [str(path.relative_to(folder)) for glob in GUIDES for path in sorted(folder.glob(glob))]
    return list(dict.fromkeys(found))


def page_of() -> dict[str, str]:
    """Return the page of each file and folder of the repository that has one."""
    pages = {
        "README.md": "index.md",
        "findings/README.md": "findings.md",
        "findings": "findings.md",
    }
    for package in PACKAGES:
        pages[f"packages/{package}"] = f"{package}/index.md"
        pages[f"packages/{package}/README.md"] = f"{package}/index.md"
        pages[f"packages/{package}/CHANGELOG.md"] = f"{package}/changelog.md"
        for guide in guides(package):
            pages[f"packages/{package}/{guide}"] = f"{package}/{guide.replace('README', 'index')}"
    pages.update({f".github/{name}.md": f"house/{name.lower()}.md" for name in HOUSE})
    return pages


HOUSE = ("ARCHITECTURE", "CONTRIBUTING", "SECURITY")
PAGES = page_of()


def linked(text: str, source: str, page: str) -> str:
    """Return a file's text with its links turned to pages, or to the repository."""

    def replace(match: re.Match[str]) -> str:
        before, target, anchor, after = match.groups()
        # A published README names files by the repository's address.
        inside = re.match(rf"{re.escape(ADDRESS)}/(?:blob|raw|tree)/main/(.+)", target)
        if inside:
            target = posixpath.relpath(inside[1], posixpath.dirname(source))
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            return f"{before}{target}{after}"  # no link, and the build ends with that
        if path in PAGES:
            where = posixpath.relpath(PAGES[path], posixpath.dirname(page) or ".")
        elif path.endswith((".svg", ".png")):
            where = copied(path, page)
        else:
            where = f"{ADDRESS}/blob/main/{path}"
        return f"{before}{where}{anchor or ''}{after}"

    return LINK.sub(replace, text)


def copied(path: str, page: str) -> str:
    """Put a picture beside the pages and return its place as seen from one."""
    name = f"pictures/{path.replace('/', '-')}"
    with mkdocs_gen_files.open(name, "wb") as file:
        file.write((ROOT / path).read_bytes())
    return posixpath.relpath(name, posixpath.dirname(page) or ".")


def write(page: str, text: str) -> None:
    """Write one page."""
    with mkdocs_gen_files.open(page, "w") as file:
        file.write(text)


def changelog(package: str) -> str:
    """Return a changelog with the fragments of what is not released yet at its top."""
    folder = ROOT / "packages" / package
    lines = ["## Not released yet", ""]
    for kind in ("breaking", "added", "changed", "fixed"):
        paths = sorted(folder.glob(f"changes/*.{kind}.md"))
        entries = [f"- {' '.join(path.read_text(encoding='utf-8').split())}" for path in paths]
        lines += [f"### {kind.capitalize()}", "", *entries, ""] if entries else []
    text = (folder / "CHANGELOG.md").read_text(encoding="utf-8")
    return text.replace("<!-- releases start -->", "\n".join(lines))


def exported(module: str) -> list[str]:
    """Return the names in a module's `__all__`, by reading and not by importing it."""
    package = module.split(".")[0].replace("_", "-")
    base = ROOT / "packages" / package / "src" / module.replace(".", os.sep)
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            return list(ast.literal_eval(node.value))  # type: ignore[union-attr]
    public = (ast.FunctionDef, ast.ClassDef)
    return [n.name for n in tree.body if isinstance(n, public) and not n.name.startswith("_")]


def reference(package: str) -> str:
    """Return the page with the docstrings of everything that a package exports."""
    modules = (package.replace("-", "_"), *MODULES.get(package, ()))
    lines = [f"# Reference of {package}", ""]
    submodules = {module.rsplit(".", 1)[1] for module in MODULES.get(package, ())}
    for module in modules:
        lines += [f"## `{module}`", ""]
        lines += [f"::: {module}.{n}\n" for n in exported(module) if n not in submodules]
    return "\n".join(lines)


def main() -> None:
    """Write every page, and the navigation."""
    nav = [
        "* [Start](index.md)",
        "* Choose\n    * [Moving from the published packages](moving.md)",
        "    * [Versions](versions.md)\n    * [Glossary](glossary.md)",
    ]
    for package in PACKAGES:
        source = f"packages/{package}/README.md"
        text = (ROOT / source).read_text(encoding="utf-8")
        write(f"{package}/index.md", linked(text, source, f"{package}/index.md"))
        nav += [f"* {package}", f"    * [Overview]({package}/index.md)"]
        for guide in guides(package):
            source = f"packages/{package}/{guide}"
            text, page = (ROOT / source).read_text(encoding="utf-8"), PAGES[source]
            write(page, linked(text, source, page))
            title = TITLES.get(guide) or text.split("\n", 1)[0].lstrip("# ")
            nav.append(f"    * [{title}]({page})")
        if exported(package.replace("-", "_")) or MODULES.get(package):
            write(f"{package}/reference.md", reference(package))
            nav.append(f"    * [Reference]({package}/reference.md)")
        page = f"{package}/changelog.md"
        write(page, linked(changelog(package), f"packages/{package}/CHANGELOG.md", page))
        nav.append(f"    * [Changelog]({page})")
    nav.append("* House")
    for source, page in {f".github/{n}.md": f"house/{n.lower()}.md" for n in HOUSE}.items():
        write(page, linked((ROOT / source).read_text(encoding="utf-8"), source, page))
        nav.append(f"    * [{Path(page).stem.capitalize()}]({page})")
    findings = (ROOT / "findings/README.md").read_text(encoding="utf-8")
    write("findings.md", linked(findings, "findings/README.md", "findings.md"))
    nav.append("    * [Findings](findings.md)")
    start = (ROOT / "README.md").read_text(encoding="utf-8")
    write("index.md", linked(start, "README.md", "index.md"))
    write("nav.md", "\n".join(nav) + "\n")


main()
