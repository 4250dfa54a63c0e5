"""Write into each file of compiled loops the digests of the files whose functions it compiles in.

numba keeps machine code by the content of the file that holds a loop, not by that of the files that the
loop calls into. With these digests in it, that file changes where they do, and no machine code of
another version is ever run.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src/merganser"

CALLED = {
    "engine/kernels.py": ("engine/vectors.py",),
    "engine/consensus.py": ("engine/vectors.py", "engine/few.py", "engine/kernels.py"),
    "study/distances.py": ("engine/kernels.py",),
}
"""Files of loops, and those whose functions they call; the callers of a caller come after it."""


def stamped(name: str) -> str:
    """A file's text as it should be."""
    digests = " ".join(
        hashlib.sha256((SOURCE / called).read_bytes()).hexdigest()[:16] for called in CALLED[name]
    )
    text = (SOURCE / name).read_text()
    return re.sub(r'^_CALLED = ".*"$', f'_CALLED = "{digests}"', text, count=1, flags=re.MULTILINE)


if __name__ == "__main__":
    for each in CALLED:
        (SOURCE / each).write_text(stamped(each))
