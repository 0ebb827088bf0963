"""Scan model families: ``python tests/models/scan.py [FAMILY ...]``, or ``make test-models``.

A tiny model with random weights is made of every family that transformers and TransformerLens share. Each either harvests rightly (every
site of every layer holds what some module of plain Hugging Face takes or gives there, and the parts add up to the residual stream) or is
refused in one sentence from its configuration. The scan prints a table and fails if a family does neither.
"""

import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
warnings.filterwarnings("ignore")

from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES  # noqa: E402
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402

from scopemill.deploy.demo.run import MODEL  # noqa: E402
from scopemill.harvester.config import ModelConfig  # noqa: E402
from scopemill.harvester.language_model.bridge import quiet_libraries  # noqa: E402
from scopemill.harvester.language_model.describe import describe  # noqa: E402
from scopemill.harvester.language_model.model import LanguageModel  # noqa: E402
from scopemill.proto.errors import ModelError  # noqa: E402
from scopemill.proto.hooks import Hook  # noqa: E402

LAYERS, WIDTH, TOLERANCE = 4, 32, 1e-3
# Sizes by the names that configurations have for them; a family gets those that it knows.
TINY = {
    "vocab_size": 2304, "hidden_size": WIDTH, "n_embd": WIDTH, "d_model": WIDTH, "word_embed_proj_dim": WIDTH, "num_hidden_layers": LAYERS,
    "n_layer": LAYERS, "n_layers": LAYERS, "num_layers": LAYERS, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "attention_heads": 4,
    "num_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "ffn_dim": 64, "n_inner": 64, "d_ff": 64,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_topk": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8,
    "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "max_position_embeddings": 128, "n_positions": 128,
    "rotary_dim": 4, "sliding_window": 16, "state_size": 8, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16,
    "mamba_d_ssm": 64, "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "lru_width": WIDTH,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 2304, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# What a family needs beyond these sizes.
OWN: dict[str, dict] = {
    "falcon": {"new_decoder_architecture": False, "multi_query": False},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "deepseek_v3": {"num_key_value_heads": 4, "head_dim": 4},
    "glm4_moe_lite": {"num_key_value_heads": 4, "head_dim": 4},
    "glm_moe_dsa": {"num_key_value_heads": 4, "head_dim": 4},
    "youtu": {"num_key_value_heads": 4, "head_dim": 4},
    "bamba": {"attn_layer_indices": [1, 3]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"] * (LAYERS // 2), "n_groups": 1},
    "gemma3n": {"vision_config": None},
    "zamba2": {"layer_types": ["mamba", "hybrid"] * (LAYERS // 2), "hybrid_layer_ids": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
}


def families() -> dict[str, str]:
    """The architectures that both packages know, with transformers' name of their configuration."""
    kinds = {architecture: kind for kind, architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}
    return {architecture: kinds[architecture] for architecture in sorted(SUPPORTED_ARCHITECTURES) if architecture in kinds}


def tiny_config(kind: str, architecture: str) -> PretrainedConfig:
    made = CONFIG_MAPPING[kind]
    default = made()
    known = {*default.to_dict(), *default.attribute_map}
    fields = {name: value for name, value in TINY.items() if name in known} | OWN.get(kind, {})
    inner = {name: CONFIG_MAPPING[part.model_type] for name in made.sub_configs if (part := getattr(default, name, None)) is not None}
    for name, config in inner.items():
        parts = {*config().to_dict(), *config().attribute_map}
        fields[name] = {field: value for field, value in TINY.items() if field in parts}
    config = made(**fields)
    config.architectures = [architecture]
    return config


class Plain:
    """What every module inside the layers of plain Hugging Face takes and gives for some tokens."""

    def __init__(self, folder: str, tokens: torch.Tensor, layers: int):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        stacks = [m for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and not re.search("vision|audio", name)]
        stack = next(m for m in stacks if len(m) == layers)
        self.seen: list[dict[str, torch.Tensor]] = [{} for _ in stack]
        for layer, block in enumerate(stack):
            for name, module in block.named_modules():
                module.register_forward_hook(self._note(self.seen[layer], name), with_kwargs=True)
        with torch.inference_mode():
            model(tokens, use_cache=False)

    @staticmethod
    def _note(seen: dict[str, torch.Tensor], name: str):
        def note(module, arguments, keywords, output) -> None:
            given = next((x for x in (*arguments, *keywords.values()) if isinstance(x, torch.Tensor) and x.is_floating_point()), None)
            taken = output[0] if isinstance(output, tuple) else output
            for way, x in (("in", given), ("out", taken)):
                if isinstance(x, torch.Tensor):
                    seen[f"{name}.{way}"] = x.detach().clone()

        return note

    def where(self, layer: int, x: torch.Tensor) -> list[str]:
        """The places of a layer that hold x [B, T, d]."""
        return [place for place, there in self.seen[layer].items() if there.numel() == x.numel() and _same(there.reshape(x.shape), x)]


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a.double() - b.double()).norm() <= TOLERANCE * max(float(b.double().norm()), 1e-6))


def problems(card, captured: dict[str, torch.Tensor], plain: Plain) -> Iterator[str]:
    """What is wrong with the captured activations, hook by hook."""
    ends = {"resid_pre": (".in",), "resid_post": (".out",)}
    for hook in [hook for hook in card.hooks("all", "all") if hook.name in captured]:
        x = captured[hook.name]
        if x.shape[-1] != card.widths[hook.site]:
            yield f"{hook.name} is {x.shape[-1]} wide, planned were {card.widths[hook.site]}"
            continue
        found = plain.where(hook.layer, x)
        if not found or (hook.site in ends and not set(ends[hook.site]) & set(found)):
            yield f"{hook.name} is nowhere in plain Hugging Face" + (f", only at {found[0]}" if found else "")
    refused_middle = "resid_mid" in card.widths and not any(name.endswith("hook_resid_mid") for name in captured)
    for layer in range(card.layers) if not refused_middle else ():  # such a model has its norms behind the sums
        x = {site: captured[name] for site in card.widths if (name := Hook(layer, site).name) in captured}
        if {"resid_pre", "attn_out", "mlp_out", "resid_post"} <= x.keys() and not _adds_up(x):
            yield f"layer {layer}: resid_pre, attn_out and mlp_out do not add up to resid_post"


def _adds_up(x: dict[str, torch.Tensor]) -> bool:
    """The change of the stream is a combination of what attention and MLP added, each with one factor."""
    parts = torch.stack([x["attn_out"].double().flatten(), x["mlp_out"].double().flatten()], dim=1)
    change = (x["resid_post"].double() - x["resid_pre"].double()).flatten()
    rest = change - parts @ torch.linalg.lstsq(parts, change).solution
    return bool(rest.norm() <= TOLERANCE * x["resid_post"].double().norm())


def scan(architecture: str, kind: str, folder: Path) -> tuple[str, str]:
    """One family's outcome, and its reason: right, refused, wrong, or not made."""
    torch.manual_seed(0)
    try:
        with quiet_libraries():
            AutoModelForCausalLM.from_config(tiny_config(kind, architecture)).save_pretrained(folder)
            AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
            tokens = torch.randint(3, 2048, (2, 12))
            plain = Plain(str(folder), tokens, LAYERS)
    except Exception as error:
        return "not made", _line(error)
    model = ModelConfig(name=str(folder))
    try:
        card = describe(model)
        hooks = card.hooks("all", "all")
        if not hooks:
            return "wrong", "it has no site, and was not refused"
    except ModelError as error:
        return "refused", _line(error)
    except Exception as error:
        return "wrong", f"describing it ended in {_line(error)}"
    try:
        lm = LanguageModel(model)
        captured, refused = {}, {}
        for hook in hooks:  # a site that is refused at boot leaves the others
            try:
                captured.update(lm.capture(tokens, [hook]))
            except ModelError as error:
                refused[hook.site] = _line(error)
    except ModelError as error:
        return "refused at boot", _line(error)
    except Exception as error:
        return "wrong", f"reading it ended in {_line(error)}"
    if wrong := list(problems(card, captured, plain)):
        return "wrong", "; ".join(wrong[:4]) + f" ({len(wrong)} in all)"
    without = {site: f" (not at {', '.join(map(str, layers))})" for site, layers in card.lacking.items()}
    sites = ", ".join(site + without.get(site, "") for site in card.widths if site not in refused)
    return "right", "; ".join([sites, *refused.values()])


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"


def main(wanted: list[str]) -> int:
    outcomes: Counter[str] = Counter()
    print("| family | outcome | sites, or reason |\n|---|---|---|", flush=True)
    for architecture, kind in families().items():
        if wanted and architecture not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcome, reason = scan(architecture, kind, Path(folder))
        reason = reason.replace(folder, "the model").replace("|", "/")
        print(f"| {architecture} | {outcome} | {reason} |", flush=True)
        outcomes[outcome] += 1
    print(f"\n{', '.join(f'{count} {outcome}' for outcome, count in outcomes.most_common())}")
    return 1 if outcomes["wrong"] or outcomes["not made"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
