"""Cut a small fixture out of a whole one.

`python tests/goldens/cut_model.py WHOLE tests/goldens/model`. Text and speech tables keep the rows
that are used, ids are renumbered in order; every number left is upstream's. The best and second
best id of each step are kept, so that greedy runs stay the same.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

CASES = ("s2t_chat_think", "text2token_streaming", "speech2text_token_history")
RUNS = ("understanding_short_1", "s2t_chat_short", "s2s_think_short", "t2t_0", "tts_1",
        "multiturn_2")  # fmt: skip
TABLES = ("llama_model.model.embed_tokens.weight", "llama_model.lm_head.weight",
          "embed_tokens.weight", "lm_head.weight")  # fmt: skip
SPEECH_TABLE, SPEECH_HEAD = "speech_token_emded.weight", "speech_head"
COLUMNS = 24
DROPPED = ("text_lse", "speech_lse", "text_argmax", "speech_argmax", "text_logits_row")
HEARD = ("short_", "batch_mixed_proj", "batch_mixed_lens")


class Cut:
    """The whole fixture, the rows that stay, and the new number of each."""

    def __init__(self, whole: Path) -> None:
        self.whole = whole
        self.runs = {name: run for name, run in self.json("generate.json").items() if name in RUNS}
        self.steps = np.load(whole / "generate.npz")
        self.cases = {name: dict(np.load(whole / f"train_{name}.npz")) for name in CASES}
        self.words = self.json("train.json")
        config = self.json("llm_config.json")
        self.text_rows = config["vocab_size"]
        self.edge = yaml.safe_load((whole / "model.yaml").read_text())["speech_token_num"] - 1
        columns = np.load(whole / "columns.npz")
        self.columns = {name: columns[name][:COLUMNS] for name in columns.files}
        self.text, self.speech = self._rows()

    def json(self, name: str) -> Any:
        return json.loads((self.whole / name).read_text(encoding="utf-8"))

    def _rows(self) -> tuple[dict[int, int], dict[int, int]]:
        """Old id -> new id, for text and for speech."""
        text = {number for ids in self.json("token_ids.json").values() for number in ids}
        speech = {self.edge, self.edge + 1, self.edge + 2, *self.columns["speech_cols"].tolist()}
        text |= set(self.columns["text_cols"].tolist())
        for call in self.json("processors.json")["age_tag_sequence_of_calls_without_reset"]:
            text |= {*call["ids"], *(call["finite"] if call["finite"] != "all" else ())}
        for name, run in self.runs.items():
            top = self.steps[f"{name}/step_top"]
            text |= set(top[: run["n_text_steps"]].flatten().tolist())
            speech |= set(top[run["n_text_steps"] :].flatten().tolist())
        turns = [turn for pool in ("history_full", "history_partial")
                 for item in self.words[pool] for turn in item]  # fmt: skip
        for codes in [*self.words["speech_tokens"], *(turn["speech_token"] for turn in turns)]:
            speech |= set(codes)
        for arrays in self.cases.values():
            text |= {number for number in arrays["in_target"].flatten().tolist() if number >= 0}
        first, second = ({old: new for new, old in enumerate(sorted(kept))}
                         for kept in (text, speech))  # fmt: skip
        return first, second

    def joint(self, ids: np.ndarray) -> np.ndarray:
        """Renumber ids of the joint space; negative ones (no target, padding) stay."""
        def new(number: int) -> int:
            if number < 0:
                return number
            if number < self.text_rows:
                return self.text[number]
            return len(self.text) + self.speech[number - self.text_rows]

        return np.vectorize(new, otypes=[ids.dtype])(ids)

    def codes(self, ids: np.ndarray) -> np.ndarray:
        """Renumber speech ids; negative ones stay."""
        def new(number: int) -> int:
            return number if number < 0 else self.speech[number]

        return np.vectorize(new, otypes=[ids.dtype])(ids)

    def weights(self) -> dict[str, torch.Tensor]:
        """The state dict without position tables, text and speech tables cut."""
        weights = torch.load(self.whole / "model.pt", weights_only=True)
        weights = {name: value for name, value in weights.items() if not name.endswith(".pe")}
        table = weights[TABLES[0]][list(self.text)].clone()
        spoken = [number for number in self.speech if number <= self.edge]
        return {
            **weights,
            **dict.fromkeys(TABLES, table),
            SPEECH_TABLE: weights[SPEECH_TABLE][list(self.speech)].clone(),
            f"{SPEECH_HEAD}.weight": weights[f"{SPEECH_HEAD}.weight"][spoken].clone(),
            f"{SPEECH_HEAD}.bias": weights[f"{SPEECH_HEAD}.bias"][spoken].clone(),
        }

    def case(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        """One training case, renumbered, with fewer columns."""
        kept = {name: values for name, values in arrays.items() if name not in DROPPED}
        for name in ("in_target", "in_prompt", "target_full", "target_shifted_flat"):
            if name in kept:
                kept[name] = self.joint(kept[name])
        if "in_speech_tokens" in kept:
            kept["in_speech_tokens"] = self.codes(kept["in_speech_tokens"])
        for name in ("text_logits_cols", "speech_logits_cols"):
            kept[name] = kept[name][..., :COLUMNS]
        spoken = [number for number in self.speech if number <= self.edge]
        kept["speech_logits_row"] = kept["speech_logits_row"][spoken]
        return kept

    def run(self, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """One generation: its record and its arrays, renumbered."""
        run, border = self.runs[name], self.runs[name]["n_text_steps"]
        arrays = {key: self.steps[key] for key in self.steps.files if key.startswith(f"{name}/")}

        def renumber(ids: np.ndarray) -> np.ndarray:
            return np.concatenate((self.joint(ids[:border]), self.codes(ids[border:])))

        arrays[f"{name}/step_top"] = renumber(arrays[f"{name}/step_top"])
        if f"{name}/first_logits" in arrays:
            spoken = [number for number in self.speech if number <= self.edge]
            arrays[f"{name}/first_logits"] = arrays[f"{name}/first_logits"][spoken]
        if f"{name}/first_logits_cols" in arrays:
            arrays[f"{name}/first_logits_cols"] = arrays[f"{name}/first_logits_cols"][:COLUMNS]
        record = {key: value for key, value in run.items() if not key.startswith("returned")}
        return {**record, "ids": renumber(np.array(run["ids"])).tolist()}, arrays


def write(cut: Cut, target: Path) -> None:
    """Write the cut fixture into an empty directory."""
    def dump(name: str, value: Any) -> None:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        (target / name).write_text(text + "\n", encoding="utf-8")

    target.mkdir(parents=True)
    for name in ("short.wav", "long.wav"):
        shutil.copyfile(cut.whole / name, target / name)
    torch.save(cut.weights(), target / "model.pt")
    settings = yaml.safe_load((cut.whole / "model.yaml").read_text())
    settings["speech_token_num"] = len(cut.speech) - 2
    (target / "model.yaml").write_text(yaml.safe_dump(settings))
    dump("llm_config.json", {**cut.json("llm_config.json"), "vocab_size": len(cut.text)})
    table = cut.json("token_ids.json")
    dump("token_ids.json", {text: [cut.text[old] for old in ids] for text, ids in table.items()})
    np.savez_compressed(target / "columns.npz",
                        text_cols=cut.joint(cut.columns["text_cols"]),
                        speech_cols=cut.codes(cut.columns["speech_cols"]))  # fmt: skip
    for source in ("audio", "audio_bf16"):
        arrays = np.load(cut.whole / f"{source}.npz")
        kept: dict[str, Any] = {
            name: arrays[name] for name in arrays.files if name.startswith(HEARD)
        }
        np.savez_compressed(target / f"{source}.npz", **kept)
    for name, arrays in cut.cases.items():
        np.savez_compressed(target / f"train_{name}.npz", **cut.case(arrays))
    runs = {name: cut.run(name) for name in cut.runs}
    dump("generate.json", {name: record for name, (record, _) in runs.items()})
    every: dict[str, Any] = {
        key: values for _, arrays in runs.values() for key, values in arrays.items()
    }
    np.savez_compressed(target / "generate.npz", **every)
    write_words(cut, dump)


def write_words(cut: Cut, dump: Any) -> None:
    """train.json and processors.json, renumbered."""
    words = dict(cut.words)
    words["losses"] = {name: words["losses"][name] for name in cut.cases}
    words["speech_tokens"] = [[cut.speech[old] for old in codes]
                              for codes in words["speech_tokens"]]  # fmt: skip
    for pool in ("history_full", "history_partial"):
        words[pool] = [
            [{**turn, "speech_token": [cut.speech[old] for old in turn["speech_token"]]}
             for turn in item]
            for item in words[pool]
        ]  # fmt: skip
    dump("train.json", words)
    tables = cut.json("processors.json")
    for call in tables["age_tag_sequence_of_calls_without_reset"]:
        call["ids"] = [cut.text[old] for old in call["ids"]]
        if call["finite"] != "all":
            call["finite"] = [cut.text[old] for old in call["finite"]]
            call["n_inf"] = len(cut.text) - len(call["finite"])
    dump("processors.json", tables)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("whole", type=Path, help="directory of the whole fixture")
    parser.add_argument("target", type=Path, help="directory to write; replaced if it exists")
    options = parser.parse_args(argv)
    shutil.rmtree(options.target, ignore_errors=True)
    write(Cut(options.whole), options.target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
