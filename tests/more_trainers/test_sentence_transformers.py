"""Sentence Transformers: an attached loss calls its model once for each text of a pair."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from documented import loop_of_passes, run_recipe
from reference import same_bits
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Dense, StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]


def encoder() -> SentenceTransformer:
    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_dim=8), Dense(8, 6)], device="cpu"
    )


def pairs() -> Dataset:
    texts = [f"{first} {second}" for first in WORDS for second in WORDS[:2]]
    return Dataset.from_dict({"anchor": texts, "positive": texts[1:] + texts[:1]})


def arguments(folder: Path, **options: Any) -> SentenceTransformerTrainingArguments:
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )


def test_the_recipe_equals_a_loop_by_hand(tmp_path):
    model = encoder()
    run_recipe("Sentence Transformers", model=model, arguments=arguments(tmp_path), pairs=pairs())

    twin = encoder()
    loss = MultipleNegativesRankingLoss(twin)
    trainer = SentenceTransformerTrainer(
        twin, arguments(tmp_path), train_dataset=pairs(), loss=loss
    )
    batches = [trainer.collect_features(batch) for batch in trainer.get_train_dataloader()]
    expected = loop_of_passes(loss, loss, batches)
    assert len(batches) == 4
    assert same_bits(list(model.state_dict().values()), expected)
