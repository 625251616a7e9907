"""Kill ranks of ``train_decoder.py`` five times, and compare the end with an undisturbed run: the same bits.

    python tools/examples/fsdp/kills.py --out tools/results/kills.json

A rank ends itself with SIGKILL: three times at a random instant, once inside a save, once inside a refresh. torchrun
then ends the other ranks. It is started again, as a cluster's scheduler does, and the program continues from its last
complete checkpoint.
"""

import argparse
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("train_decoder.py")
KILLS = ("random", "save", "random", "refresh", "random")
RANKS, STEPS, SAVE_EVERY = 2, 40, 4


def die(what: str) -> None:
    print(f"rank {os.environ['RANK']} is killed: {what}", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(given: Any, number: int, act: Any) -> Any:
    """The same function; ``act`` comes before its n-th call."""
    calls = [0]

    def function(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            act()
        return given(*args, **options)

    return function


def plan_a_death(kind: str, draw: random.Random) -> None:
    """Let this process end soon after its first new checkpoint."""
    import torch
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    from topkast.runtime.state import refresh

    if kind == "save":  # the second save writes no data of this rank
        write_data = at_call(FileSystemWriter.write_data, 2, lambda: die("inside a save"))
        FileSystemWriter.write_data = write_data  # type: ignore[method-assign]
    elif kind == "refresh":  # in the third refresh, after its first weight
        refresh.renewed = at_call(refresh.renewed, 18, lambda: die("inside a refresh"))
    else:
        late = draw.random() * 0.05
        timer = threading.Timer(late, lambda: die(f"at a random instant, {late * 1000:.1f} ms after a step began"))
        step = draw.randint(SAVE_EVERY, SAVE_EVERY + 3)
        backward = at_call(torch.Tensor.backward, step, timer.start)
        torch.Tensor.backward = backward  # type: ignore[method-assign]


def run(folder: str, program: Path, attempt: int = 0) -> str:
    """The output of one start of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    command += ["--monitor-interval=0.2", str(program)]
    command += ["--folder", folder, "--steps", str(STEPS), "--save-every", str(SAVE_EVERY)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "KILL": str(attempt)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if bool(done.returncode) != ("is killed" in done.stdout):
        raise SystemExit(f"{done.stdout}\n{done.stderr}")
    return done.stdout


def digest(text: str) -> str:
    return re.findall(r"have the hash (\w+)", text)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the random instants")
    parser.add_argument("--out", type=Path, help="a JSON file for the kills and both hashes; None: no file")
    args = parser.parse_args()
    os.environ["KILL_SEED"] = str(args.seed)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = digest(run(f"{folder}/undisturbed", PROGRAM))
        text = ""
        for attempt in range(len(KILLS) + 1):
            text += (found := run(f"{folder}/killed", Path(__file__), attempt))
            started = re.search(r"continue after step (\d+)", found)
            dead = re.search(r"rank (\d+) is killed: (.*)", found)
            row = {"continued after step": int(started[1]) if started else 0}
            rows.append(row | ({"killed rank": int(dead[1]), "when": dead[2]} if dead else {}))
            print("\n".join(line for line in found.splitlines() if "killed" in line or "continue" in line), flush=True)
    killed, count = digest(text), text.count("is killed")
    if args.out is not None:
        from topkast.tools.common.results import machine, write

        ends = {"undisturbed": undisturbed, "after the kills": killed}
        write(args.out, machine(), {"seed": args.seed, "ranks": RANKS, "steps": STEPS}, {"starts": rows, **ends})
    print(
        f"undisturbed {undisturbed}, after {count} kills {killed}: {'equal' if undisturbed == killed else 'DIFFERENT'}"
    )
    if undisturbed != killed or count != len(KILLS):
        raise SystemExit(1)


if __name__ == "__main__":
    if "RANK" not in os.environ:
        main()
    else:
        attempt = int(os.environ["KILL"])
        chance = random.Random(f"{os.environ['KILL_SEED']}/{attempt}")
        if attempt < len(KILLS) and int(os.environ["RANK"]) == chance.randrange(RANKS):
            plan_a_death(KILLS[attempt], chance)
        runpy.run_path(str(PROGRAM), run_name="__main__")
