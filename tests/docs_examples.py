"""The examples of docs/how_to, which the tests run as they are printed."""

import re

from tests.fork_server import PROJECT


def python_example(page: str) -> str:
    """The Python block of a page in docs/how_to."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$",
        (PROJECT / "docs" / "how_to" / page).read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert len(blocks) == 1, f"docs/how_to/{page} must have one Python block"
    return blocks[0]
