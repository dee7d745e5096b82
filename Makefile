# make demo and make test set up everything they need in .venv; a second run starts at once.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
RUN := .venv/bin/python
QUESTION ?= pretrained/tiny/samples/question.wav
TOKEN2WAV := build/token2wav
REPLIES := build/reply_world

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint parity tiny tiny-data clean

help:
	@echo "make demo            ask the small model a bundled question and hear its reply"
	@echo "make test            the quick tests and the style check"
	@echo "make test-all        every test, the slow ones too"
	@echo "make lint            style and types"
	@echo "make parity DIR=...  compare with a directory of reference tensors"
	@echo "make tiny            train the small model again from nothing (hours)"
	@echo "make clean           remove .venv and caches"

demo: .venv/run.stamp
	@$(RUN) infer_runtime.py --task s2s_think --thinking label --wav $(QUESTION) --out reply.wav

test: .venv/dev.stamp
	$(RUN) -m ruff check .
	$(RUN) -m pytest

test-all: .venv/dev.stamp lint
	$(RUN) -m pytest -m ""

lint: .venv/dev.stamp
	$(RUN) -m ruff check .
	$(RUN) -m mypy

parity: .venv/run.stamp
	@test -n "$(DIR)" || { echo "name a directory of reference tensors: make parity DIR=..." >&2; exit 2; }
	@$(RUN) -m osum_echat.parity $(DIR)

# What the small model learns from: speech parts, corpus, lists, tokenizer. Every step goes on where it stopped.
tiny-data: .venv/dev.stamp
	$(RUN) -m common_utils.tiny_world.assets
	$(RUN) -m common_utils.tiny_world.make --out build/world --split train --size 8500 --seed 1
	$(RUN) -m common_utils.tiny_world.make --out build/world --split test --size 300 --seed 2
	$(RUN) -m common_utils.tiny_world.drill --corpus build/world
	$(RUN) -m common_utils.tiny_world.reply_set --out $(REPLIES) --minutes 100
	$(RUN) -m common_utils.tiny_world.reply_set --out $(REPLIES)_user --minutes 100 \
		--sentences build/world/train/exchanges.jsonl --styles 1
	$(RUN) -m osum_echat.training.train_tokenizer conf/tiny/token2wav_tokenizer.yaml \
		"lists=[$(REPLIES)/reply.list, $(REPLIES)_user/reply.list]" tokens=$(REPLIES)/reply_tokens.list
	$(RUN) -m osum_echat.training.train_flow conf/tiny/token2wav_flow.yaml "data=[$(REPLIES)/reply_tokens.list]" \
		output=$(TOKEN2WAV)/flow
	$(RUN) -m osum_echat.training.train_vocoder conf/tiny/token2wav_vocoder.yaml "lists=[$(REPLIES)/reply_tokens.list]"
	$(RUN) -m osum_echat.training.train_speaker conf/tiny/token2wav_speaker.yaml \
		"lists=[build/world/train/exchanges.jsonl, $(REPLIES)/reply_tokens.list]"
	$(RUN) -m common_utils.tiny_world.lists --corpus build/world --pretrain-size 20000 \
		--speech-tokenizer $(TOKEN2WAV)/speech_tokenizer.onnx --sentences $(REPLIES)/reply_tokens.list
	$(RUN) -m common_utils.tiny_world.text_tokenizer --out build/world/tokenizer

# The whole recipe of pretrained/tiny.
tiny: tiny-data
	PYTHON=$(RUN) bash train.sh all conf/tiny
	$(RUN) -m common_utils.tiny_world.assemble --model exp/tiny/stage3/final --flow $(TOKEN2WAV)/flow \
		--vocoder $(TOKEN2WAV)/vocoder_training --speaker $(TOKEN2WAV)/speaker.onnx \
		--speech-tokenizer $(TOKEN2WAV)/speech_tokenizer.onnx \
		--samples build/world/test --out pretrained/tiny

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache reply.wav
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One install each; made again only when a list of requirements changes.
.venv/run.stamp: requirements.txt pyproject.toml | .venv/bin/python
	@echo "setting up .venv: some minutes, once" >&2
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	@touch $@

.venv/dev.stamp: requirements.txt requirements-train.txt requirements-dev.txt pyproject.toml | .venv/bin/python
	@echo "setting up .venv for development: some minutes, once" >&2
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -e .
	@touch $@ .venv/run.stamp

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "python could not make .venv: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
