// Copies the segments of planned rows to their places in a batch buffer, each byte written once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fill/batch_format.h"
#include "fill/plan.h"

namespace stoker {

/// Fills rows [begin, end) of the batch in `buffer` (format.size_bytes() bytes, aligned to its integers). Rows may be
/// filled by several threads at once. All bytes of the plan's samples must be present. Raises CorruptShardError.
///
/// input_ids: tokens, pad_id on padding. labels: as input_ids, kIgnoreLabel on padding. attention_mask: 1, 0 on
/// padding. sequence_id: number of the document in its row, kNoDocument on padding. position_ids: place in the
/// document as far as it lies in the row, 0 on padding. stream_ids: number of the stream, kNoDocument on padding.
void fill_rows(const BatchFormat& format, const BatchPlan& plan, uint32_t begin, uint32_t end, std::byte* buffer);

}  // namespace stoker
