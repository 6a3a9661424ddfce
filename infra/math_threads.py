"""How many threads linear algebra may use in a process. It knows nothing of what is computed."""

import os

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def limit_math_threads(n_threads: int = 1) -> None:
    """For all of this process: libraries that are loaded now, and those that will be.

    A process whose requests or runs are threads of their own has to do this: products of many threads on few cores
    wait for each other.
    """
    from threadpoolctl import threadpool_limits

    os.environ.update(dict.fromkeys(VARIABLES, str(n_threads)))
    threadpool_limits(n_threads)
