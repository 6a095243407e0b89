"""The generator against RFC 8439 and against an independent implementation."""

from __future__ import annotations

import random
import struct

import pytest
import torch
from streams import block

from edgetune.directions.chacha import chacha20

COUNTING = bytes(range(32))
ZERO, ONE_LAST, FF_SECOND = bytes(32), bytes(31) + b"\1", b"\0\xff" + bytes(30)
# key, counter, nonce, key stream block
RFC = {
    "2.3.2": (
        COUNTING, 1, "000000090000004a00000000",
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e",
    ),
    "A.1 #1": (
        ZERO, 0, "00" * 12,
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
    ),
    "A.1 #2": (
        ZERO, 1, "00" * 12,
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
    ),
    "A.1 #3": (
        ONE_LAST, 1, "00" * 12,
        "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
        "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
    ),
    "A.1 #4": (
        FF_SECOND, 2, "00" * 12,
        "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
        "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
    ),
    "A.1 #5": (
        ZERO, 0, "00" * 11 + "02",
        "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
        "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RFC)
def test_the_block_function_gives_the_vectors_of_rfc_8439(case: str) -> None:
    key, counter, nonce, expected = RFC[case]
    words = chacha20(key, bytes.fromhex(nonce), torch.tensor([counter]))
    assert words.numpy().astype("<i4").tobytes().hex() == expected


@pytest.mark.parametrize("first", [0, 1, 2**31 - 1, 2**31, 2**32 - 2])
def test_many_blocks_at_once_equal_an_independent_implementation_block_by_block(first: int) -> None:
    source = random.Random(first)
    key, nonce = source.randbytes(32), source.randbytes(12)
    words = chacha20(key, nonce, torch.arange(first, first + 2))
    for row, counter in enumerate((first, first + 1)):
        packed = struct.pack("<16I", *block(key, nonce, counter))
        assert words[row].contiguous().numpy().tobytes() == packed


def test_no_block_is_no_word() -> None:
    assert chacha20(ZERO, bytes(12), torch.arange(0)).shape == (0, 16)
