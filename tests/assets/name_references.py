"""Record what Hugging Face calls the tensors of the models that it saves.

    python tests/assets/name_references.py --output=tests/assets/golden_names/golden.json

Needs torch and transformers 5; does not import tfzoo. Of each model_type "config", a config.json, and "names": of each
class, the tensors in the file that save_pretrained writes of it.
"""

import argparse
import json
import pathlib
import tempfile
import typing

import torch
import transformers
from safetensors import safe_open
from transformers import CONFIG_MAPPING

BERT: dict[str, typing.Any] = dict(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
BERT |= dict(intermediate_size=12, max_position_embeddings=10)
LLAMA = BERT | dict(num_key_value_heads=1, head_dim=4)
BART = dict(vocab_size=40, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2)
BART |= dict(decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12, max_position_embeddings=10)
BART |= dict(pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2)
T5 = dict(vocab_size=40, d_model=8, d_kv=4, num_heads=2, num_layers=1, num_decoder_layers=1, d_ff=12)
T5 |= dict(decoder_start_token_id=0)
REFORMER: dict[str, typing.Any] = dict(vocab_size=40, hidden_size=8, attention_head_size=4, num_attention_heads=2)
REFORMER |= dict(feed_forward_size=12)
REFORMER |= dict(attn_layers=["local", "lsh"], axial_pos_shape=[4, 8], axial_pos_embds_dim=[4, 4], num_buckets=2)
REFORMER |= dict(max_position_embeddings=32, local_attn_chunk_length=4, lsh_attn_chunk_length=4)
TASKS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
CAUSAL = ("Model", "ForCausalLM", "ForSequenceClassification")
SEQ2SEQ = ("Model", "ForConditionalGeneration", "ForSequenceClassification")
# model_type -> what its classes' names begin with, the rest of them, and sizes.
CASES: dict[str, tuple[str, tuple[str, ...], dict]] = {
    "albert": ("Albert", (*TASKS, "ForPreTraining"), BERT | dict(embedding_size=4)),
    "bart": ("Bart", SEQ2SEQ, BART),
    "bert": ("Bert", (*TASKS, "ForPreTraining", "ForNextSentencePrediction"), BERT),
    "camembert": ("Camembert", TASKS, BERT),
    "data2vec-text": ("Data2VecText", TASKS, BERT),
    "distilbert": (
        "DistilBert", TASKS,
        dict(vocab_size=40, dim=8, n_layers=1, n_heads=2, hidden_dim=12, max_position_embeddings=10),
    ),
    "electra": ("Electra", (*TASKS, "ForPreTraining"), BERT | dict(embedding_size=4)),
    "ernie": ("Ernie", (*TASKS, "ForPreTraining", "ForNextSentencePrediction"), BERT),
    "gpt2": (
        "GPT2",
        ("Model", "LMHeadModel", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
        dict(vocab_size=40, n_embd=8, n_layer=1, n_head=2, n_positions=10),
    ),
    "llama": ("Llama", CAUSAL, LLAMA),
    "marian": ("Marian", ("Model", "MTModel"), BART),
    "mbart": ("MBart", SEQ2SEQ, BART),
    "mistral": ("Mistral", CAUSAL, LLAMA),
    "mt5": ("MT5", SEQ2SEQ, T5),
    "pegasus": ("Pegasus", SEQ2SEQ[:2], BART),
    "plbart": ("PLBart", SEQ2SEQ, BART),
    "qwen2": ("Qwen2", CAUSAL, LLAMA | dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3", CAUSAL, LLAMA),
    "reformer": ("Reformer", ("Model", "ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering"), REFORMER),
    "roberta": ("Roberta", TASKS, BERT),
    "t5": ("T5", SEQ2SEQ, T5),
    "xlm-roberta": ("XLMRoberta", TASKS, BERT),
    "xlnet": (
        "XLNet",
        ("Model", "LMHeadModel", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnsweringSimple"),
        dict(vocab_size=40, d_model=8, n_layer=1, n_head=2, d_inner=12),
    ),
}  # fmt: skip


def names_of(model) -> list[str]:
    if model.config.model_type == "mt5" and hasattr(model, "lm_head"):  # Published ones have a matrix of their own.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 2)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(pathlib.Path(folder, "model.safetensors"), "np") as file:
            return sorted(file.keys())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    found = {}
    for model_type, (start, ends, sizes) in CASES.items():
        config = CONFIG_MAPPING[model_type](**sizes)
        names = {start + end: names_of(getattr(transformers, start + end)(config)) for end in ends}
        if model_type == "reformer":
            config.is_decoder = True
            names["ReformerModelWithLMHead"] = names_of(transformers.ReformerModelWithLMHead(config))
        found[model_type] = {"config": {**sizes, "model_type": model_type}, "names": names}
    content = {"transformers": transformers.__version__, "model_types": found}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(content, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
