"""What releases with noise cost together, and how much noise a target takes."""

from edgetune.privacy.accountant import Releases, noise_for, spent

__all__ = ["Releases", "noise_for", "spent"]
