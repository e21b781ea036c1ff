// What a batch looks like in memory: one buffer, field after field, each rows x seq_len integers of a type of its own,
// and behind them cu_seqlens, if it is asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/integer.h"
#include "order/dealing.h"

namespace stoker {

enum class Field : uint8_t {
  kInputIds,
  kLabels,
  kLossMask,  // 1 where labels would be the token, 0 where kIgnoreLabel; not for streams with labels of their own
  kAttentionMask,
  kPositionIds,
  kSequenceId,
  kStreamIds,
};

inline constexpr int kIgnoreLabel = -100;  // torch's ignore_index: no loss here
inline constexpr int kNoDocument = -1;     // sequence_id and stream_ids of padding

/// Values that a type can't hold are written modulo its range: kIgnoreLabel as 65,436 in kU16.
struct FieldFormat {
  Field field;
  IntegerType type = IntegerType::kI64;  // of kInputIds and kLabels: kU16, kI32 or kI64
};

struct BatchFormat {
  enum class Documents : uint8_t { kSamples, kEos, kBos };  // where documents begin, for sequence_id and position_ids
  static constexpr size_t kAlignment = 64;                  // of each field in the buffer

  std::vector<FieldFormat> fields;  // in the order of the buffer; input_ids is one of them, none twice
  uint32_t num_rows = 0;            // of this rank
  uint32_t seq_len = 0;
  int64_t pad_id = 0;
  bool pad_left = false;
  Documents documents = Documents::kSamples;
  std::vector<int64_t> document_tokens;  // kEos, kBos: by stream; -1: the stream's documents are its samples
  bool counts_padding = false;           // kEos, kBos: sequence_id is how many of them precede, as LLM Foundry has it
  bool ignores_pad_id = false;           // kIgnoreLabel, too, where a token of a shard without labels is pad_id
  bool needs_loss = false;               // a sample with labels that is cut must have one that is not kIgnoreLabel left
  bool is_packed = false;                // segments of a row have nothing to do with each other
  uint32_t pad_to_multiple = 1;          // the tokens that a segment takes are rounded up to it
  uint64_t vocab_size = 0;           // a token at or above it is an error; 0: only what the integer type can't hold is
  uint32_t cu_seqlens_capacity = 0;  // sequences that it has room for; 0: it is not asked for

  /// Tokens that a segment takes in a row, padding included.
  uint32_t room(uint32_t tokens) const { return ceil_div(tokens, pad_to_multiple) * pad_to_multiple; }

  size_t row_bytes(const FieldFormat& field) const { return size_t{seq_len} * stoker::size_bytes(field.type); }
  size_t field_bytes(const FieldFormat& field) const {
    return ceil_div(num_rows * row_bytes(field), kAlignment) * kAlignment;
  }
  size_t fields_bytes() const {
    size_t bytes = 0;
    for (const FieldFormat& field : fields) bytes += field_bytes(field);
    return bytes;
  }
  size_t cu_seqlens_bytes() const {
    return cu_seqlens_capacity == 0 ? 0 : (size_t{cu_seqlens_capacity} + 1) * sizeof(int32_t);
  }
  size_t size_bytes() const { return fields_bytes() + cu_seqlens_bytes(); }
};

}  // namespace stoker
