"""ExecuTorch in a process of its own, run as a script by `pte_runtime.py`: torch and executorch, nothing else.

Arguments: the program, a file of calls, a file for what they give. Both files are torch's, of tensors only: a list of
[ids int64 [1, n], places int64 [n]] in, one of logits float32 [1, n, vocabulary] and one of seconds out.
"""

import sys
import time
import warnings

warnings.simplefilter("ignore")

import executorch.kernels.quantized  # noqa: E402, F401 - operators on codes
import torch  # noqa: E402
from executorch.runtime import Runtime  # noqa: E402


def main(program: str, calls: str, found: str) -> None:
    """Run one program on some inputs, one after the other, on one cache."""
    method = Runtime.get().load_program(program).load_method("forward")
    logits, seconds = [], []
    for ids, places in torch.load(calls, weights_only=True):
        start = time.perf_counter()
        given = method.execute([ids, places])[0]
        seconds.append(time.perf_counter() - start)
        logits.append(given.clone())  # the next call writes over it
    torch.save({"logits": logits, "seconds": torch.tensor(seconds)}, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
