"""Tiny configs of real architectures, four layers each, for transformers to make models of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

LAYERS = 4
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = IDS | {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 64,
}
GROUPED = TEXT | {"num_key_value_heads": 1}
WIDE = TEXT | {"num_key_value_heads": 2}
DECODER = GROUPED | {"head_dim": 8}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
GPT = IDS | {"vocab_size": 64, "n_embd": 16, "n_layer": LAYERS, "n_head": 2, "n_positions": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1}
BOTH_SIDES = IDS | {
    "vocab_size": 64,
    "d_model": 16,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
}
T5 = {
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": LAYERS,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
ROTARY_3D = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 1,
    "temporal_patch_size": 1,
}
IMAGE = {"image_token_id": 5}
VIDEO = IMAGE | {"video_token_id": 6, "vision_start_token_id": 7}
MARKED = {"image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7}
SIGLIP = VISION | {"model_type": "siglip_vision_model"}
PER_LAYER = {
    "hidden_size_per_layer_input": 4,
    "vocab_size_per_layer_input": 64,
    "num_kv_shared_layers": 0,
    "sliding_window": 8,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
}
MIXED = ["linear_attention", "full_attention"] * 2


@dataclass(frozen=True)
class Family:
    """A config and the class that it is for."""

    config: str
    options: Mapping[str, Any]
    suffix: str = "ForCausalLM"
    inputs: tuple[str, ...] = ("input_ids",)

    @property
    def model_class(self) -> Any:
        """The transformers class."""
        return getattr(transformers, self.config.removesuffix("Text") + self.suffix)

    def make(self, folder: Path, **changes: Any) -> Path:
        """Save a random model in bfloat16, as ``save_pretrained`` writes it."""
        config = getattr(transformers, f"{self.config}Config")(**{**self.options, **changes})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model_class(config).to(torch.bfloat16).save_pretrained(folder)
        return folder


def images(text: dict[str, Any], vision: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"text_config": text, "vision_config": vision, **more}


FAMILIES: dict[str, Family] = {
    "llama": Family("Llama", DECODER | {"attention_bias": True}),
    "llama_score": Family("Llama", DECODER | {"num_labels": 3}, "ForSequenceClassification"),
    "mistral": Family("Mistral", DECODER),
    "mixtral": Family("Mixtral", DECODER | {"num_local_experts": 2}),
    "qwen2": Family(
        "Qwen2",
        GROUPED | {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8},
    ),
    "qwen2_moe": Family(
        "Qwen2Moe",
        GROUPED | EXPERTS | {"shared_expert_intermediate_size": 8, "mlp_only_layers": [1]},
    ),
    "qwen3": Family("Qwen3", DECODER | {"tie_word_embeddings": True}),
    "qwen3_moe": Family("Qwen3Moe", DECODER | EXPERTS | {"mlp_only_layers": [1]}),
    "qwen3_next": Family(
        "Qwen3Next",
        DECODER
        | EXPERTS
        | {
            "layer_types": MIXED,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 8,
        },
    ),
    "gemma": Family("Gemma", DECODER),
    "gemma2": Family("Gemma2", DECODER | {"sliding_window": 8}),
    "gemma3_text": Family("Gemma3Text", DECODER | {"sliding_window": 8}),
    "gemma3n": Family(
        "Gemma3nText",
        DECODER
        | PER_LAYER
        | {
            "intermediate_size": [24] * LAYERS,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
        },
    ),
    "gemma4": Family(
        "Gemma4Text", DECODER | PER_LAYER | {"per_layer_config": {3: {"head_dim": 16}}}
    ),
    "phi": Family("Phi", TEXT),
    "phi3": Family("Phi3", WIDE),
    "cohere": Family("Cohere", TEXT),
    "cohere_qk_norm": Family("Cohere", TEXT | {"use_qk_norm": True}),
    "cohere2": Family("Cohere2", TEXT | {"sliding_window": 8}),
    "glm": Family("Glm", DECODER),
    "glm4": Family("Glm4", DECODER),
    "glm4_moe": Family("Glm4Moe", DECODER | ROUTED),
    "gpt_neox": Family("GPTNeoX", TEXT),
    "gpt2": Family("GPT2", GPT, "LMHeadModel"),
    "gpt_bigcode": Family("GPTBigCode", GPT),
    "gptj": Family("GPTJ", GPT | {"rotary_dim": 4}),
    "gpt_neo": Family(
        "GPTNeo",
        IDS
        | {
            "vocab_size": 64,
            "hidden_size": 16,
            "num_layers": LAYERS,
            "num_heads": 2,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 8,
        },
    ),
    "opt": Family("OPT", TEXT | {"ffn_dim": 24, "word_embed_proj_dim": 16}),
    "bloom": Family("Bloom", {"vocab_size": 64, "hidden_size": 16, "n_layer": LAYERS, "n_head": 2}),
    "falcon": Family("Falcon", TEXT),
    "stablelm": Family("StableLm", WIDE),
    "starcoder2": Family("Starcoder2", GROUPED),
    "olmo2": Family("Olmo2", WIDE),
    "olmo3": Family("Olmo3", WIDE | {"sliding_window": 8}),
    "apertus": Family("Apertus", GROUPED),
    "arcee": Family("Arcee", DECODER),
    "exaone4": Family("Exaone4", DECODER | {"sliding_window": 8, "sliding_window_pattern": 2}),
    "granite": Family("Granite", GROUPED | {"attention_bias": True}),
    "granite_hybrid": Family(
        "GraniteMoeHybrid",
        GROUPED
        | MAMBA
        | {
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "shared_intermediate_size": 8,
            "layer_types": MIXED,
        },
    ),
    "lfm2": Family("Lfm2", GROUPED | {"full_attn_idxs": [1]}),
    "smollm3": Family("SmolLM3", GROUPED | {"no_rope_layers": [1, 0, 1, 0]}),
    "ernie4_5": Family("Ernie4_5", DECODER),
    "nemotron": Family("Nemotron", DECODER),
    "deepseek_v3": Family(
        "DeepseekV3",
        WIDE
        | ROUTED
        | {
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
    "gpt_oss": Family(
        "GptOss",
        DECODER | {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8},
    ),
    "mamba": Family(
        "Mamba", {"vocab_size": 64, "hidden_size": 16, "state_size": 4, "num_hidden_layers": LAYERS}
    ),
    "mamba2": Family(
        "Mamba2",
        IDS
        | {
            "vocab_size": 64,
            "hidden_size": 16,
            "num_heads": 4,
            "head_dim": 8,
            "state_size": 4,
            "n_groups": 1,
            "num_hidden_layers": LAYERS,
        },
    ),
    "jamba": Family(
        "Jamba",
        GROUPED
        | {
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 2,
            "use_mamba_kernels": False,
        },
    ),
    "bamba": Family("Bamba", GROUPED | MAMBA | {"attn_layer_indices": [1]}),
    "falcon_h1": Family("FalconH1", DECODER | MAMBA | {"mamba_d_ssm": 32}),
    "nemotron_h": Family(
        "NemotronH",
        DECODER
        | {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"]}
        | {"n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
        | {"moe_shared_expert_intermediate_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 8}
        | {"ssm_state_size": 4, "n_groups": 1},
    ),
    "recurrent_gemma": Family(
        "RecurrentGemma",
        {k: v for k, v in DECODER.items() if k != "max_position_embeddings"}
        | {
            "lru_width": 16,
            "attention_window_size": 8,
            "block_types": ["recurrent", "attention"],
        },
    ),
    "rwkv": Family(
        "Rwkv",
        IDS
        | {
            "vocab_size": 64,
            "hidden_size": 16,
            "num_hidden_layers": LAYERS,
            "attention_hidden_size": 16,
            "intermediate_size": 24,
        },
    ),
    "bert": Family("Bert", TEXT, "Model"),
    "bert_masked": Family("Bert", TEXT, "ForMaskedLM"),
    "bert_labels": Family("Bert", TEXT | {"num_labels": 3}, "ForSequenceClassification"),
    "roberta": Family("Roberta", TEXT, "ForMaskedLM"),
    "distilbert": Family(
        "DistilBert",
        {
            "vocab_size": 64,
            "dim": 16,
            "hidden_dim": 24,
            "n_layers": LAYERS,
            "n_heads": 2,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
        },
        "ForMaskedLM",
    ),
    "modernbert": Family(
        "ModernBert",
        TEXT | {"cls_token_id": 1, "sep_token_id": 2, "global_attn_every_n_layers": 2},
        "ForMaskedLM",
    ),
    "deberta_v2": Family("DebertaV2", TEXT, "ForMaskedLM"),
    "t5": Family("T5", T5, "ForConditionalGeneration", ("input_ids", "decoder_input_ids")),
    "t5_gated": Family(
        "T5",
        T5 | {"num_decoder_layers": 5, "feed_forward_proj": "gated-gelu"},
        "ForConditionalGeneration",
        ("input_ids", "decoder_input_ids"),
    ),
    "bart": Family(
        "Bart",
        BOTH_SIDES | {"max_position_embeddings": 64, "decoder_start_token_id": 2},
        "ForConditionalGeneration",
        ("input_ids", "decoder_input_ids"),
    ),
    "whisper": Family(
        "Whisper",
        BOTH_SIDES
        | {
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "decoder_start_token_id": 1,
        },
        "ForConditionalGeneration",
        ("input_features", "decoder_input_ids"),
    ),
    "vit": Family(
        "ViT",
        VISION | {"num_hidden_layers": LAYERS},
        "ForImageClassification",
        ("pixel_values",),
    ),
    "clip": Family(
        "CLIP",
        images(TEXT | {"projection_dim": 16}, VISION, projection_dim=16),
        "Model",
        ("input_ids", "pixel_values"),
    ),
    "llava": Family(
        "Llava",
        images(
            DECODER | {"model_type": "llama"},
            VISION | {"model_type": "clip_vision_model"},
            **IMAGE,
            vision_feature_layer=-2,
        ),
        "ForConditionalGeneration",
    ),
    "gemma3": Family(
        "Gemma3",
        images(
            DECODER | {"model_type": "gemma3_text", "sliding_window": 8},
            SIGLIP,
            **MARKED,
            mm_tokens_per_image=1,
        ),
        "ForConditionalGeneration",
    ),
    "mistral3": Family(
        "Mistral3",
        images(
            DECODER | {"model_type": "mistral"},
            VISION | {"model_type": "pixtral", "head_dim": 8},
            image_token_index=5,
            spatial_merge_size=1,
        ),
        "ForConditionalGeneration",
    ),
    "llama4": Family(
        "Llama4",
        images(
            DECODER
            | {
                "intermediate_size_mlp": 24,
                "num_local_experts": 2,
                "interleave_moe_layer_step": 2,
                "no_rope_layers": [1, 0, 1, 0],
                "attention_chunk_size": 8,
            },
            VISION
            | {
                "intermediate_size": 64,
                "vision_output_dim": 16,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
            },
            **MARKED,
        ),
        "ForConditionalGeneration",
    ),
    "qwen2_vl": Family(
        "Qwen2VL",
        images(
            GROUPED | {"rope_parameters": ROTARY_3D},
            QWEN_VISION | {"embed_dim": 16, "mlp_ratio": 2},
            **VIDEO,
        ),
        "ForConditionalGeneration",
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VL",
        images(
            GROUPED | {"rope_parameters": ROTARY_3D},
            QWEN_VISION
            | {
                "out_hidden_size": 16,
                "intermediate_size": 24,
                "fullatt_block_indexes": [1],
                "window_size": 8,
            },
            **VIDEO,
        ),
        "ForConditionalGeneration",
    ),
    "qwen3_vl": Family(
        "Qwen3VL",
        images(
            DECODER | {"rope_parameters": ROTARY_3D},
            QWEN_VISION
            | {
                "out_hidden_size": 16,
                "intermediate_size": 24,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            **VIDEO,
            vision_end_token_id=8,
        ),
        "ForConditionalGeneration",
    ),
    "internvl": Family(
        "InternVL",
        images(
            GROUPED | {"model_type": "qwen2"},
            VISION | {"image_size": [8, 8], "patch_size": [4, 4]},
            **IMAGE,
            downsample_ratio=0.5,
        ),
        "ForConditionalGeneration",
    ),
    "mllama": Family(
        "Mllama",
        images(
            GROUPED
            | {
                "cross_attention_layers": [1],
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            VISION
            | {
                "num_global_layers": 1,
                "attention_heads": 2,
                "vision_output_dim": 32,
                "intermediate_layers_indices": [0],
                "supported_aspect_ratios": [[1, 1]],
                "max_num_tiles": 1,
            },
            image_token_index=5,
        ),
        "ForConditionalGeneration",
    ),
}
"""By a name for tests."""
