"""Certificates for the TLS tests, listed in make_certificates.sh."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("make_certificates.sh")


def make_certificates(folder):
    """Fill `folder` (a Path) and return it; skips without openssl(1)."""
    if shutil.which("openssl") is None:
        pytest.skip("the command openssl is missing")
    subprocess.run(
        ["sh", str(SCRIPT), str(folder)], check=True, capture_output=True
    )
    return folder
