"""A sound site passes; each thing that can be wrong with it is named."""

import check_site
import pytest

SOUND = (
    '<link rel="canonical" href="https://a.example/"><a href="b.html#x">b</a><h1 id="top">A</h1>'
)


@pytest.fixture
def site(tmp_path):
    (tmp_path / "a.html").write_text(SOUND)
    (tmp_path / "b.html").write_text('<h1 id="x">B</h1><a href="a.html">a</a><a href="#x">x</a>')
    (tmp_path / "p.png").touch()
    return tmp_path


def test_a_sound_site_passes(site):
    assert list(check_site.problems(site)) == []


@pytest.mark.parametrize(
    ("tag", "problem"),
    [
        ('<a href="c.html">', "a.html links to c.html, which is not there"),
        ('<a href="b.html#y">', "a.html links to b.html#y, where no such heading is"),
        ('<img src="q.png">', "a.html shows q.png, which is not there"),
        ('<script src="https://a.example/x.js"></script>', "from another host"),
        ('<link rel="stylesheet" href="//a.example/x.css">', "from another host"),
    ],
)
def test_what_is_wrong_is_named(site, tag, problem):
    (site / "a.html").write_text(SOUND + tag)
    (found,) = check_site.problems(site)
    assert problem in found


def test_an_empty_folder_is_named(tmp_path):
    assert list(check_site.problems(tmp_path)) == [f"{tmp_path} has no page"]
