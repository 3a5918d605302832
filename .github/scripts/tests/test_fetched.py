"""A page that fetches what is there passes; anything else ends the build."""

import sys
from types import SimpleNamespace

import pytest
from workspace import ROOT

sys.path.insert(0, str(ROOT / ".github" / "site"))

import fetched

SOUND = (
    '<link rel="canonical" href="https://a.example/"><img src="p.png">'
    '<script src="/p.png"></script>'
    '<link href="https://a.example/" rel="next"><img src="data:image/png;base64,x">'
)


@pytest.mark.parametrize(
    ("tag", "problem"),
    [
        ("", None),
        ('<img src="q.png">', "a.html shows q.png, which is not there"),
        ('<link rel="stylesheet" href="q.css">', "a.html shows q.css, which is not there"),
        ('<script async src="https://a.example/x.js"></script>', "from another host"),
        ('<iframe title="x" src="//a.example/x"></iframe>', "from another host"),
        ('<link rel="stylesheet" href="//a.example/x.css">', "from another host"),
    ],
)
def test_what_a_page_fetches_is_there(tmp_path, tag, problem):
    (tmp_path / "p.png").touch()
    (tmp_path / "a.html").write_text(SOUND + tag)
    assert [problem in line for line in fetched.problems(tmp_path)] == [True] * bool(problem)
    if problem:
        with pytest.raises(SystemExit, match=problem):
            fetched.on_post_build(SimpleNamespace(site_dir=tmp_path))
