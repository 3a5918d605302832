"""Print which parameters of real architectures each partition trains by AdamW, as Markdown.

    python partition_table.py > ../PARTITIONS.md

Models are built from their configurations on the meta device: real sizes, no memory, no download.
"""

import logging
import os
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"  # Before transformers is imported, which reads it then.

import torch
import transformers
from stac_torch import partition_trainable_layers

# Name of the row, model class, configuration class, what its defaults lack.
ARCHITECTURES = [
    ("GPT-2", "GPT2LMHeadModel", "GPT2Config", {}),
    ("Llama", "LlamaForCausalLM", "LlamaConfig", {}),
    ("Llama, tied", "LlamaForCausalLM", "LlamaConfig", {"tie_word_embeddings": True}),
    ("Gemma 2", "Gemma2ForCausalLM", "Gemma2Config", {}),
    ("Qwen 3", "Qwen3ForCausalLM", "Qwen3Config", {}),
    ("Mixtral", "MixtralForCausalLM", "MixtralConfig", {}),
    ("GPT-OSS", "GptOssForCausalLM", "GptOssConfig", {"num_hidden_layers": 4}),
    ("Mamba", "MambaForCausalLM", "MambaConfig", {}),
    ("BERT, masked", "BertForMaskedLM", "BertConfig", {}),
    ("BERT, classifier", "BertForSequenceClassification", "BertConfig", {}),
    ("T5", "T5ForConditionalGeneration", "T5Config", {}),
    ("BART", "BartForConditionalGeneration", "BartConfig", {}),
    ("Whisper", "WhisperForConditionalGeneration", "WhisperConfig", {}),
    ("ViT", "ViTForImageClassification", "ViTConfig", {}),
    ("Swin", "SwinForImageClassification", "SwinConfig", {}),
    ("ConvNeXt", "ConvNextForImageClassification", "ConvNextConfig", {}),
    ("CLIP", "CLIPModel", "CLIPConfig", {}),
]
PRESETS = {
    "default": {},
    "recommended": {"shared_owner": "last", "norms_on_adamw": True},
    "transformer": {"partition": "transformer"},
}
HEADER = """# Partitions of real architectures

What takes AdamW under the default partition, under `shared_owner="last", norms_on_adamw=True`, and
under `partition="transformer"`. `tests_integration/partition_table.py` counts it on the models that
transformers builds from these configurations (their defaults, on the meta device).

- head: who trains the output embedding, or the classifier;
- by AdamW: its share of the parameters;
- matrices: the number of tensors of two dimensions or more in the AdamW section, of all there are;
- vectors: likewise for tensors of fewer dimensions.

| model | partition | head | by AdamW | matrices | vectors |
|---|---|---|---|---|---|"""


def build(model, config, options):
    """Return a model on the meta device."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, model)(getattr(transformers, config)(**options))


def heads(model):
    """Return the weights of the outputs of a model."""
    outputs = model.get_output_embeddings()
    if outputs is not None:
        return [outputs.weight]
    names = ("classifier", "visual_projection", "text_projection")
    return [getattr(model, name).weight for name in names if hasattr(model, name)]


def row(label, name, model):
    partition = partition_trainable_layers(model, **PRESETS[name])
    adamw, sign = partition.adamw_parameters, partition.sign_parameters
    assert len(adamw) + len(sign) == len(list(model.parameters()))
    mine = set(map(id, adamw))
    on = sorted({"AdamW" if id(p) in mine else "sign" for p in heads(model)})
    share = sum(p.numel() for p in adamw) / sum(p.numel() for p in model.parameters())
    counts = [
        f"{sum((p.ndim >= 2) is matrix for p in adamw)} of "
        f"{sum((p.ndim >= 2) is matrix for p in model.parameters())}"
        for matrix in (True, False)
    ]
    return f"| {label} | {name} | {' and '.join(on)} | {share:.1%} | {' | '.join(counts)} |"


def main():
    logging.disable(logging.WARNING)
    lines = [HEADER]
    for label, model, config, options in ARCHITECTURES:
        built = build(model, config, options)
        lines += [row(label if name == "default" else "", name, built) for name in PRESETS]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
