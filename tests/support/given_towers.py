"""Small towers that others have trained, as their publishers have them: timm's EfficientNet and a BERT."""

import timm
import torch
from transformers import BertConfig, BertForPreTraining

#: Of the tests' size.
BERT = {
    "model_type": "bert", "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
IMAGE_TOWER = "test_efficientnet"


def efficientnet_weights():
    torch.manual_seed(7)
    return timm.create_model(IMAGE_TOWER).state_dict()


def write_bert(folder, tokenizer_folder, num_words):
    """A BERT of the tests' size with random weights and its tokenizer, as the hub has it: with heads and a pooler."""
    torch.manual_seed(3)
    values = BERT | {"vocab_size": num_words + 3, "initializer_range": 0.3}
    model = BertForPreTraining(BertConfig(**values))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    return model.bert.eval()
