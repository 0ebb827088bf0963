"""Define the tables of an SAE's evidence; docs/evidence.md documents every column."""

import pyarrow as pa

_ids, _numbers = pa.list_(pa.int32()), pa.list_(pa.float32())
LATENTS = pa.schema(
    [
        ("latent", pa.int32()),
        ("fired", pa.int64()),  # rows on which the latent fires
        ("density", pa.float64()),  # fired / rows
        ("max", pa.float32()),
        ("mean", pa.float64()),  # mean and deviation over the rows on which it fires
        ("std", pa.float64()),
        ("histogram_range", pa.float32()),  # the power of two above the maximum; 0 for a latent that never fires
        ("histogram", pa.list_(pa.int64())),
        ("top_token", pa.int32()),  # most frequent among the sampled tokens on which it fires; null where it never fires
        ("top_token_share", pa.float32()),
        ("token_entropy", pa.float32()),  # bits, of the sampled tokens
        ("promoted_tokens", _ids),  # without tokens that were never trained
        ("promoted_values", _numbers),
        ("suppressed_tokens", _ids),
        ("suppressed_values", _numbers),
        ("all_promoted_tokens", _ids),  # of the whole vocabulary
        ("all_promoted_values", _numbers),
        ("all_suppressed_tokens", _ids),
        ("all_suppressed_values", _numbers),
        ("nearest_latents", _ids),  # by decoder cosine
        ("nearest_cosines", _numbers),
        ("cofiring_latents", _ids),  # by phi over the sampled rows
        ("cofiring_phi", _numbers),
        ("cluster", pa.int32()),  # the smallest latent of the cluster
        ("encoder_decoder_cosine", pa.float32()),  # null for SAEs that reconstruct another hook than they read
        ("decoder_norm", pa.float32()),
    ]
)
EXAMPLE = pa.struct(
    [
        ("interval", pa.int8()),  # TOP, or the interval of the histogram's range that was sampled
        ("value", pa.float32()),  # the activation at the peak
        ("peak", pa.int16()),  # index of the token in the window that this example is about
        ("document", pa.int64()),
        ("position", pa.int32()),  # of the peak's token in its document
        ("shard", pa.int32()),
        ("sequence", pa.int32()),  # in the shard's packed text
        ("start", pa.int32()),  # of the window in the sequence
        ("tokens", _ids),
        ("activations", _numbers),  # of this latent at each token of the window
    ]
)
EXAMPLES = pa.schema([("latent", pa.int32()), ("examples", pa.list_(EXAMPLE))])
LABELS = pa.schema([("latent", pa.int32()), ("label", pa.string()), ("score", pa.float32())])
_figure = pa.float32()  # an area under the ROC curve; null where it was not measured
SCORED_LABELS = pa.schema(
    [
        *LABELS,
        ("detection", _figure),  # whether the label tells the latent's texts from others
        ("detection_nearest", _figure),  # from those of the nearest latents
        ("detection_shuffled", _figure),  # the same by another latent's label
        ("fuzzing", _figure),  # whether the label tells right marks from wrong ones
        ("fuzzing_nearest", _figure),
        ("fuzzing_shuffled", _figure),
        ("intruder", _figure),  # whether another latent's text is found among the latent's, without a label
        ("intruder_nearest", _figure),
        ("basis", pa.string()),  # of the figures: logprobs, or answers where the endpoint gives none
        ("unread", pa.int32()),  # answers that were neither yes nor no
        ("author", pa.string()),  # the model, or whoever the label came from
    ]
)
OUTPUT_SCORES = pa.schema(
    [
        ("latent", pa.int32()),
        ("output_score", pa.float32()),
        ("output_score_random", pa.float32()),  # of a random direction of the same norm
    ]
)
TOKENS = pa.schema([("token", pa.int32()), ("bytes", pa.binary()), ("special", pa.bool_()), ("trained", pa.bool_())])
