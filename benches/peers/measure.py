"""What the peers' scripts share: the options of a training step, its timing, the memory, and the line of JSON."""

import json
import resource
import statistics
import time
from pathlib import Path

# Steps that do not count: they allocate, and tune themselves.
WARM_UP = 2


def add_step_options(parser):
    """`--threads`, `--batch`, `--sequence` and `--steps`."""
    for name, default in (("threads", 2), ("batch", 16), ("sequence", 128), ("steps", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)


def time_steps(step, options):
    """Runs `step()`, which returns the loss, and gives the numbers of the workload. Memory counts from here on."""
    forget_peak()
    seconds, losses = [], []
    for _ in range(options.steps + WARM_UP):
        start = time.perf_counter()
        losses.append(float(step()))
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[WARM_UP:])
    return {
        "threads": options.threads, "batch": options.batch, "sequence": options.sequence,
        "samples_per_s": options.batch / median, "ms_per_step": median * 1e3, "peak_mib": peak_mib(),
        "first_loss": losses[0], "last_loss": losses[-1],
    }


def forget_peak():
    """Starts the peak of the resident set anew, where the kernel lets a process do so."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_mib():
    """The peak of the resident set since the start or since `forget_peak`, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return (kib[0] if kib else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024


def report(numbers):
    """Prints the numbers as one line of JSON, which is the last line of a script."""
    print(json.dumps(numbers), flush=True)
