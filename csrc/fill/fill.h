// Copies the segments of planned rows to their places in a batch buffer, each byte written once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fill/batch_format.h"
#include "fill/plan.h"

namespace stoker {

/// Fills rows [begin, end) of the batch in `buffer` (format.size_bytes() bytes, aligned to its integers), and their
/// segments' entries of plan.segment_loss. Different rows may be filled by several threads at once. All bytes of the
/// plan's samples must be present. Raises CorruptShardError, or ArgumentError where a sample has no loss left.
///
/// input_ids: tokens, pad_id on padding. labels: those of the shard, or as input_ids where it has none; kIgnoreLabel on
/// padding, and on the first token of every segment but the row's first where the batch is packed. attention_mask: 1, 0
/// on padding. sequence_id: number of the document in its row, kNoDocument on padding. position_ids: place in the
/// document as far as it lies in the row, 0 on padding. stream_ids: number of the stream, kNoDocument on padding.
/// With counts_padding, sequence_id is instead how many document tokens stand before the token (kEos), or before it and
/// at its place (kBos), from the row's first place on, whatever stands there.
/// Values are written modulo the range of the field's type; tokens and labels that do not fit are an error.
void fill_rows(const BatchFormat& format, BatchPlan& plan, uint32_t begin, uint32_t end, std::byte* buffer);

/// Once all rows are filled: counts loss in plan.rows and tokens and loss of each row, and writes cu_seqlens if it is
/// asked for. These are int32 places in the batch's rows, one behind the other: 0, the end of each document and of the
/// padding of each row, then num_rows * seq_len until the capacity is reached. Returns the length of the longest of
/// these sequences, 0 where it wrote no cu_seqlens. Raises ArgumentError where these do not fit.
uint32_t finish_batch(const BatchFormat& format, BatchPlan& plan, std::byte* buffer);

}  // namespace stoker
