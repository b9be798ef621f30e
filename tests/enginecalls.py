"""The system calls that engines were seen to make for an object; not a test module.

As strace showed them of their released wheels, or as their source has them; `read` stands for
`readv` of one buffer, `io_submit:pread` for an io_submit(2) that begins one read.
"""

from __future__ import annotations

PUBLISHED = "stat open write close rename"
PYTHON_OPEN = "open fstat ioctl lseek"
# Engine → the calls of a lookup of an object that is there, its store into a directory that is
# there, its load and its delete; of mooncake-bucket, the store and the delete of a whole bucket.
SEEN = {
    "vllm-fs": ("access", f"access {PUBLISHED}", "open read close", "unlink"),
    "sglang-file": (
        "stat", f"stat {PYTHON_OPEN} write close rename", "open fstat read close", "unlink",
    ),
    "sglang-nixl": (
        "stat", "open io_submit:pwrite close", "open io_submit:pread close", "unlink",
    ),
    "lmcache-fs": (
        "stat", f"stat {PYTHON_OPEN} write close rename", f"{PYTHON_OPEN} read close",
        "stat unlink",
    ),
    "lmcache-fs-native": ("stat", PUBLISHED, "open read close", "unlink"),
    "lmcache-local-disk": (None, "open write close", "open read close", "unlink"),
    "aibrix-shfs": (
        "stat", f"mkdir stat {PYTHON_OPEN} write close rename stat stat",
        f"stat stat {PYTHON_OPEN} lseek fstat read read close", "stat unlink",
    ),
    "llmd-fs": (
        "stat", f"open {PUBLISHED}", "open lseek lseek lseek read close", "unlink",
    ),
    "vllm-disk": (None, "pwrite", "pread", ""),
    "mooncake-offset": (None, "pwrite", "pread pread pread", ""),
    "mooncake-bucket": (
        None, "open pwrite open write close close", "open pread close", "unlink unlink",
    ),
    "kvbm-disk": (None, "pwrite", "pread", ""),
}  # fmt: skip
