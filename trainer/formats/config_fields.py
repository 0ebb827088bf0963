"""Check the fields of another tool's configuration, and refuse unknown ones by name.

Each field is read, or known to change nothing: one that is passed over may have made the SAE another function.
"""

from collections.abc import Collection, Mapping
from typing import Any

from scopemill.proto.errors import SaeFormatError

# Fields by which SAELens trained and logged an SAE, and which inference does not read: of versions 2 to 5 (one flat file), and of the
# training configurations of version 6.
SAELENS_TRAINING = frozenset("""
act_store_device adam_beta1 adam_beta2 autocast autocast_lm aux_loss_coefficient b_dec_init_method cached_activations_path checkpoint_path
compile_llm compile_sae context_size d_head dataset_path dataset_trust_remote_code dead_feature_estimation_method dead_feature_threshold
dead_feature_window decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm decoder_orthogonal_init device dtype
eval_batch_size_prompts eval_every_n_wandb_logs exclude_special_tokens expansion_factor feature_reinit_scale feature_resampling_method
feature_sampling_method feature_sampling_window finetuning_method finetuning_tokens from_pretrained_path ghost_grads hook_eval hook_layer
hook_point_eval hook_point_layer init_encoder_as_decoder_transpose is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold
jumprelu_sparsity_loss_mode jumprelu_ste_to_input jumprelu_tanh_scale l0_coefficient l0_lambda l0_warm_up_steps l1_coefficient
l1_warm_up_steps llm_compilation_mode log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb lp_norm lr lr_decay_steps
lr_end lr_scheduler_name lr_warm_up_steps matryoshka_widths model_class_name model_from_pretrained_kwargs model_kwargs
mse_loss_normalization n_batches_in_buffer n_checkpoints n_eval_batches n_restart_cycles n_running_sparsity neuronpedia_id noise_scale
normalize_sae_decoder pre_act_loss_coefficient prepend_bos resample_batches resume run_name sae_compilation_mode sae_lens_training_version
sae_lens_version scale_sparsity_penalty_by_decoder_norm seed seqpos_slice store_batch_size store_batch_size_prompts streaming target_l0
tokens_per_buffer topk_threshold_lr total_training_steps total_training_tokens train_batch_size train_batch_size_tokens training_tokens
unique_id use_cached_activations use_ghost_grads use_matryoshka_aux_loss use_sparse_activations verbose wandb_entity wandb_id
wandb_log_frequency wandb_project
""".split())  # fmt: skip

DICTIONARY_LEARNING_TRAINING = frozenset("""
auxk_alpha bandwidth compile decay_start decay_steps device group_fractions group_sizes group_weights initial_sparsity_penalty
k_anneal_steps l1_penalty l1_warmup_steps layer lm_name lr n_sparsity_updates p_end p_start p_update_steps resample_steps seed
sparsity_function sparsity_loss_coeff sparsity_penalty sparsity_queue_length sparsity_update_steps sparsity_warmup_steps steps
submodule_name target_l0 threshold_beta threshold_start_step top_k_aux trainer_class wandb_name warmup_steps
""".split())  # fmt: skip

SPARSIFY_TRAINING = frozenset(("expansion_factor", "normalize_decoder", "multi_topk", "num_latents"))


def check_known(place: str, config: Mapping[str, Any], read: Collection[str], ignored: Collection[str]) -> None:
    """Raise SaeFormatError for a field that is neither read nor known to change nothing."""
    for name, value in config.items():
        if name not in read and name not in ignored and value is not None:
            raise SaeFormatError(
                f"{place}: the field {name!r} ({_short(value)}) is not known and may change what the SAE computes: if not, remove it"
            )


def read_flag(place: str, config: Mapping[str, Any], field: str, default: bool) -> bool:
    """Return a field that is true or false.

    SaeFormatError for any other value, such as the string "false".
    """
    value = config.get(field, default)
    if not isinstance(value, bool):
        raise SaeFormatError(f"{place}: {field} is {_short(value)}; it has to be true or false.")
    return value


def check_one_of(place: str, config: Mapping[str, Any], field: str, known: Collection[Any]) -> None:
    """Raise SaeFormatError if a field that is there has none of the known values."""
    if field in config and not any(type(config[field]) is type(one) and config[field] == one for one in known):
        choices = ", ".join(repr(one) for one in known)
        raise SaeFormatError(f"{place}: {field} is {_short(config[field])}, which is not known; known is {choices}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
