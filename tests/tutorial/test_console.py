import pytest

from tests.tutorial.console import filled, matches, steps

PAGE = """
Text with `h1# no command`.

```console
h1# vxnet a \\
      --b
one   two
h2# vxnet run -it -- sh
# ls
file
# exit
```
```python
h3# no command
```
"""


def test_steps_of_a_page() -> None:
    first, second = steps(PAGE)
    assert (first.host, first.command.text, first.command.expected) == ("h1", "vxnet a --b", ["one   two"])
    assert (second.host, second.command.text, second.line) == ("h2", "vxnet run -it -- sh", 8)
    assert [(typed.text, typed.expected) for typed in second.inside] == [("ls", ["file"]), ("exit", [])]


@pytest.mark.parametrize(
    "expected, output, fits",
    [
        (["a  b"], "a b\r\n", True),
        (["a b"], "a b c\n", False),
        (["a … c"], "a b b c\n", True),
        (["a … c"], "a b\nc\n", False),
        (["a", "…", "z"], "a\nb\nc\nz\n", True),
        (["a", "…", "z"], "a\nz\n", True),
        (["a", "…"], "a\n", True),
        (["a", "…"], "b\n", False),
        ([], "", True),
        ([], "surprise\n", False),
        (["a.c"], "abc\n", False),
    ],
)
def test_matches(expected: list[str], output: str, fits: bool) -> None:
    assert matches(expected, output) is fits


def test_filled() -> None:
    printed = "vxnet join --token VXTKN-1-old 1.2.3.4:2377\nvxnet join --token VXTKN-1-new 1.2.3.4:2377\n"
    assert filled("vxnet join --token VXTKN-1-… 1.2.3.4", printed) == "vxnet join --token VXTKN-1-new 1.2.3.4"
    with pytest.raises(ValueError, match="nothing was printed"):
        filled("x VXTKN-2-…", printed)
