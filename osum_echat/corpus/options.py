"""The options of the doors of this room, apart from its work: `--help` needs none of that."""

import argparse
from pathlib import Path

from osum_echat.paths import TINY
from osum_echat.records import DEFAULT_TASK


def make_shard_from_raw() -> argparse.ArgumentParser:
    """The options of make_shard_from_raw.py."""
    made = argparse.ArgumentParser(
        prog="make_shard_from_raw.py",
        description="Turn a raw jsonl list into shards (tars) and their shards_list.txt.",
    )
    made.add_argument("list", type=Path, help="raw jsonl list; audio paths start at its folder")
    made.add_argument("out", type=Path, help="folder for the tars and shards_list.txt")
    made.add_argument("--per-tar", type=int, default=1000, help="utterances a tar (default: 1000)")
    made.add_argument("--prefix", default="shard", help="of the tars' names (default: shard)")
    _job(made)
    return made


def make_combine_from_shard() -> argparse.ArgumentParser:
    """The options of make_combine_from_shard.py."""
    made = argparse.ArgumentParser(
        prog="make_combine_from_shard.py",
        description="Write the words of shards into jsonl lists, one a tar; the tars stay as they "
        "are and are read along with the lists.",
    )
    made.add_argument("shards", type=Path, help="shards_list.txt, or one .tar")
    made.add_argument(
        "out", type=Path, help="folder for combines_list.txt, combines_tar_root.txt, the lists"
    )
    made.add_argument("--task", help="one task tag for all utterances in place of their own")
    _job(made)
    return made


def make_raw_from_kaldi() -> argparse.ArgumentParser:
    """The options of make_raw_from_kaldi.py."""
    made = argparse.ArgumentParser(
        prog="make_raw_from_kaldi.py",
        description="Turn a Kaldi data folder (wav.scp, text, segments, utt2*) into a raw list.",
    )
    made.add_argument("folder", type=Path, help="with wav.scp and text")
    made.add_argument("out", type=Path, help="the raw jsonl list to write")
    made.add_argument("--task", default=DEFAULT_TASK,
                      help="task tag where utt2task tells none (default: %(default)s)")  # fmt: skip
    made.add_argument("--root", type=Path, default=Path(),
                      help="where relative paths of wav.scp start (default: here)")  # fmt: skip
    _job(made)
    return made


def make_raw_from_hf() -> argparse.ArgumentParser:
    """The options of make_raw_from_hf.py."""
    made = argparse.ArgumentParser(
        prog="make_raw_from_hf.py",
        description="Turn a local Hugging Face audio data set (parquet files, or a folder with "
        "metadata.jsonl, .csv or .parquet) into a raw list. Parquet needs pyarrow.",
    )
    made.add_argument("folder", type=Path, help="the data set as downloaded")
    made.add_argument("out", type=Path, help="the raw jsonl list; parquet audio goes beside it, "
                      "into a folder of its name")  # fmt: skip
    made.add_argument("--split", help="only files whose name begins so: train, test ...")
    made.add_argument("--task", default=DEFAULT_TASK,
                      help="task tag where no column tells one (default: %(default)s)")  # fmt: skip
    for name in ("audio", "text", "key"):
        made.add_argument(f"--{name}", metavar="COLUMN", help=f"that holds the {name}")
    _job(made)
    return made


def extract_speech_tokens() -> argparse.ArgumentParser:
    """The options of extract_speech_tokens.py."""
    made = argparse.ArgumentParser(
        prog="extract_speech_tokens.py",
        description="Write a raw list again with extra.speech_token: 25 a second of the reply.",
    )
    made.add_argument("list", type=Path, help="raw jsonl list; audio paths start at its folder")
    made.add_argument("out", type=Path, help="the new list")
    made.add_argument(
        "--tokenizer",
        type=Path,
        default=TINY,
        metavar="PLACE",
        help="ONNX file, or a model or CosyVoice folder (default: the small model)",
    )
    made.add_argument(
        "--field",
        help="what to listen to: wav or a field of extra (default: "
        "wav for tasks that only speak, a_wav_path for those that hear wav)",
    )
    made.add_argument("--keep", action="store_true", help="leave records with tokens as they are")
    _job(made)
    return made


def do_test_dataloader() -> argparse.ArgumentParser:
    """The options of do_test_dataloader.py."""
    made = argparse.ArgumentParser(
        prog="do_test_dataloader.py",
        description="Print the first batch of each list: by default of the fake data in its three "
        "forms.",
    )
    add = made.add_argument
    add(
        "--config",
        type=Path,
        metavar="YAML",
        help="your own experiment, or a data yaml (names with `path` and `weight`)",
    )
    add(
        "--model",
        default=str(TINY),
        metavar="SOURCE",
        help="whose vocabulary a data yaml is read with (default: the small model)",
    )
    add("--stats", action="store_true", help="scan everything: hours, labels, lengths, bad members")
    add("--plot", type=int, metavar="N", help="draw mel and speech tokens of N utterances a list")
    add(
        "--out",
        type=Path,
        default=Path("build") / "corpus",
        metavar="FOLDER",
        help="where pictures and bad_members.txt go (default: %(default)s)",
    )
    _workers(made)
    return made


def _workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")


def _job(parser: argparse.ArgumentParser) -> None:
    """What `jobs.Job.of` reads."""
    _workers(parser)
    parser.add_argument("--overwrite", action="store_true",
                        help="make everything again instead of going on")  # fmt: skip
