#include "fill/fill.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/fault_guard.h"
#include "fill/widen.h"

namespace stoker {
namespace {

constexpr size_t kNumFields = 7;

/// One field of one row. Where the batch does not have the field there are no values, and nothing is written.
struct FieldRow {
  IntegerType type = IntegerType::kI64;
  std::byte* values = nullptr;

  explicit operator bool() const { return values != nullptr; }

  /// The values from `begin` on, as what they are; null where there are none.
  template <typename Integer>
  Integer* at(uint32_t begin) const {
    assert(sizeof(Integer) == size_bytes(type));
    return values == nullptr ? nullptr : reinterpret_cast<Integer*>(values) + begin;  // aligned, by BatchFormat
  }

  void set(uint32_t begin, uint32_t end, int64_t value) const {
    if (values != nullptr) write(begin, end, value);
  }

  /// Writes 0, 1, 2, ...
  void count(uint32_t begin, uint32_t end) const {
    if (values == nullptr) return;
    with_integer(type, [&]<typename Integer>(Integer) { std::iota(at<Integer>(begin), at<Integer>(end), Integer{0}); });
  }

 private:
  void write(uint32_t begin, uint32_t end, int64_t value) const;
};

void FieldRow::write(uint32_t begin, uint32_t end, int64_t value) const {
  with_integer(type, [&]<typename Integer>(Integer) {
    std::fill(at<Integer>(begin), at<Integer>(end), static_cast<Integer>(value));
  });
}

/// Calls `action` with a value of the C++ type of a field of tokens or labels.
template <typename Action>
auto with_token(IntegerType type, Action action) {
  switch (type) {
    case IntegerType::kU16:
      return action(uint16_t{});
    case IntegerType::kI32:
      return action(int32_t{});
    default:
      assert(type == IntegerType::kI64);
      return action(int64_t{});
  }
}

/// The fields of one row.
class RowFields {
 public:
  RowFields(const BatchFormat& format, uint32_t row, std::byte* buffer) {
    for (const FieldFormat& field : format.fields) {
      rows_[static_cast<size_t>(field.field)] = {field.type, buffer + row * format.row_bytes(field)};
      buffer += format.field_bytes(field);
    }
  }
  const FieldRow& operator[](Field field) const { return rows_[static_cast<size_t>(field)]; }

 private:
  std::array<FieldRow, kNumFields> rows_{};
};

/// Where the parts of a row lie in it.
struct Places {
  uint32_t begin = 0;  // of the first segment
  uint32_t end = 0;    // of what the last one takes
};

Places places_of(const BatchFormat& format, std::span<const Segment> segments) {
  uint32_t size = 0;
  for (const Segment& segment : segments) size += format.room(segment.size());
  assert(size <= format.seq_len);
  const uint32_t begin = format.pad_left ? format.seq_len - size : 0;
  return {begin, begin + size};
}

/// Calls visit(begin, end, padded_end) for each document of a row, in order: the places of its tokens, and the end of
/// the padding behind them up to a multiple. `ids` is the row's input_ids.
template <typename Visit>
void for_each_document(const BatchFormat& format, std::span<const Segment> segments, const FieldRow& ids, Visit visit) {
  // Cuts [begin, end) at a document token, which is its document's last (EOS) or first (BOS).
  const auto cut = [&](uint32_t begin, uint32_t end, uint32_t padded_end, int64_t token) {
    const uint32_t lead = format.documents == BatchFormat::Documents::kEos ? 1 : 0;
    with_token(ids.type, [&]<typename Integer>(Integer) {
      const Integer* values = ids.at<Integer>(0);
      while (begin < end) {
        uint32_t next = begin + 1;
        while (next < end && values[next - lead] != token) ++next;
        visit(begin, next, next == end ? padded_end : next);
        begin = next;
      }
    });
  };
  uint32_t at = places_of(format, segments).begin;
  uint32_t line = at;  // where the documents begin that go on over segments, which then are of one stream
  for (size_t i = 0; i < segments.size(); ++i) {
    const Segment& segment = segments[i];
    const uint32_t end = at + segment.size();
    const uint32_t padded_end = at + format.room(segment.size());
    const int64_t token =
        format.documents == BatchFormat::Documents::kSamples ? -1 : format.document_tokens[segment.stream];
    if (token < 0) {
      if (end > at) visit(at, end, padded_end);
      line = padded_end;
    } else if (format.is_packed || i + 1 == segments.size()) {
      cut(line, end, padded_end, token);
      line = padded_end;
    }
    at = padded_end;
  }
}

/// What tokens and labels are below.
struct Limits {
  uint64_t tokens;
  uint64_t labels;
};

Limits limits_of(const BatchFormat& format) {
  const uint64_t vocab_size = format.vocab_size > 0 ? format.vocab_size : UINT64_MAX;
  const auto limit_of = [&](Field field, uint64_t in_two_bytes, uint64_t without) {
    const auto found = std::find_if(format.fields.begin(), format.fields.end(),
                                    [&](const FieldFormat& f) { return f.field == field; });
    if (found == format.fields.end()) return without;
    if (found->type == IntegerType::kU16) return std::min(vocab_size, in_two_bytes);
    return std::min(vocab_size, found->type == IntegerType::kI32 ? uint64_t{1} << 31 : uint64_t{1} << 63);
  };
  const uint64_t tokens = limit_of(Field::kInputIds, uint64_t{1} << 16, 0);
  return {tokens, limit_of(Field::kLabels, static_cast<uint16_t>(kIgnoreLabel), tokens)};
}

class RowFiller {
 public:
  RowFiller(const BatchFormat& format, BatchPlan& plan) : format_(format), plan_(plan), limits_(limits_of(format)) {}

  /// Rows lie anywhere in the shards: the wait for the first bytes of the next one is as long as filling a third of it.
  void prefetch(uint32_t row) const {
    const uint32_t first = plan_.rows.first_segment(row);
    if (plan_.rows.row(row).empty()) return;
    const Segment& segment = plan_.rows.segments()[first];
    plan_.shards[plan_.segment_shards[first]]->prefetch(segment.sample, segment.token_begin);
  }

  void fill(uint32_t row, std::byte* buffer) const {
    const RowFields fields(format_, row, buffer);
    const std::span<const Segment> segments = plan_.rows.row(row);
    const auto [begin, end] = places_of(format_, segments);
    uint32_t at = begin;
    for (uint32_t i = 0; i < segments.size(); ++i) {
      const Segment& segment = segments[i];
      if (segment.size() == 0) continue;
      const uint32_t next = at + segment.size();
      const uint32_t in_plan = plan_.rows.first_segment(row) + i;
      plan_.segment_loss[in_plan] =
          copy(segment, *plan_.shards[plan_.segment_shards[in_plan]], at, at == begin, fields);
      fields[Field::kStreamIds].set(at, next, segment.stream);
      fields[Field::kAttentionMask].set(at, next, 1);
      at += format_.room(segment.size());
      pad(fields, next, at);
    }
    const bool counts = counts_document_tokens(segments);
    if (!counts || fields[Field::kPositionIds]) number_documents(fields, segments);
    pad(fields, 0, begin);
    pad(fields, end, format_.seq_len);
    if (counts) count_document_tokens(fields, format_.document_tokens[segments.front().stream]);
  }

 private:
  // Tokens and labels of a segment. Returns how many labels a model predicts: not that of the row's first token.
  uint32_t copy(const Segment& segment, const Shard& shard, uint32_t at, bool is_first, const RowFields& fields) const {
    const SampleTokens sample = shard.parse(segment.sample);
    const FieldRow& labels = fields[Field::kLabels];
    copy_tokens(segment, shard, sample.tokens, at, fields, sample.labels.has_value());
    uint32_t loss = segment.size();
    bool first_has_loss = true;
    fields[Field::kLossMask].set(at, at + segment.size(), 1);
    if (sample.labels) {
      assert(!fields[Field::kLossMask]);
      loss -= copy_labels(segment, shard, *sample.labels, at, labels);
      first_has_loss = value_at(*sample.labels, segment.token_begin) != kIgnoreLabel;
      if (format_.needs_loss && loss == 0 && segment.token_end < sample.tokens.size)
        throw no_loss_left(sample.tokens.size);
    } else if (format_.ignores_pad_id) {
      loss -= ignore_pad_ids(segment, sample.tokens, at, fields);
      first_has_loss = value_at(sample.tokens, segment.token_begin) != format_.pad_id;
    }
    const bool is_masked = format_.is_packed && !is_first;
    if (is_masked) {
      labels.set(at, at + 1, kIgnoreLabel);
      fields[Field::kLossMask].set(at, at + 1, 0);
    }
    return loss - (first_has_loss && (is_masked || at == 0));
  }

  // Token ids, which are the labels too where the shard has none.
  void copy_tokens(const Segment& segment, const Shard& shard, const TokenArray& tokens, uint32_t at,
                   const RowFields& fields, bool has_labels) const {
    const FieldRow& ids = fields[Field::kInputIds];
    const FieldRow labels = has_labels ? FieldRow{} : fields[Field::kLabels];
    const bool at_once = labels && labels.type == ids.type;
    const uint64_t largest = with_token(ids.type, [&]<typename Integer>(Integer) {
      return widen(tokens, segment.token_begin, segment.size(), limits_.tokens, ids.at<Integer>(at),
                   at_once ? labels.at<Integer>(at) : nullptr);
    });
    if (largest >= limits_.tokens) throw bad_value(segment, shard, largest, limits_.tokens, "among its token ids");
    if (!labels || at_once) return;
    with_token(labels.type, [&]<typename Integer>(Integer) {
      widen<Integer>(tokens, segment.token_begin, segment.size(), UINT64_MAX, labels.at<Integer>(at), nullptr);
    });
  }

  // Labels of a shard that has them. They are looked at in any case. Returns how many are kIgnoreLabel.
  uint32_t copy_labels(const Segment& segment, const Shard& shard, const TokenArray& from, uint32_t at,
                       const FieldRow& labels) const {
    const LabelCounts counts = with_token(labels.type, [&]<typename Integer>(Integer) {
      return widen_labels(from, segment.token_begin, segment.size(), labels.at<Integer>(at));
    });
    if (counts.largest >= limits_.labels)
      throw bad_value(segment, shard, counts.largest, limits_.labels, "among its labels, which are -100 or token ids,");
    return counts.num_ignored;
  }

  // Returns how many there are.
  uint32_t ignore_pad_ids(const Segment& segment, const TokenArray& tokens, uint32_t at,
                          const RowFields& fields) const {
    const uint32_t found = count_equal(tokens, segment.token_begin, segment.size(), format_.pad_id);
    for (uint32_t i = 0, left = found; left > 0; ++i) {
      if (value_at(tokens, segment.token_begin + i) != format_.pad_id) continue;
      fields[Field::kLabels].set(at + i, at + i + 1, kIgnoreLabel);
      fields[Field::kLossMask].set(at + i, at + i + 1, 0);
      --left;
    }
    return found;
  }

  // In LLM Foundry's words.
  ArgumentError no_loss_left(uint32_t tokens) const {
    return ArgumentError(
        text("Truncating to max_seq_len=", format_.seq_len,
             " has removed all loss-generating tokens. Pre-truncation sequence length was ", tokens,
             ". This sample should have been filtered out before reaching the collator. If using pre-tokenized "
             "streaming data, this may have resulted from using different ``target_prompts``, ``target_responses``, or "
             "``max_seq_len`` settings when preparing the streaming dataset than what are currently being used."));
  }

  CorruptShardError bad_value(const Segment& segment, const Shard& shard, uint64_t value, uint64_t limit,
                              const char* where) const {
    const std::string shown = value == UINT64_MAX ? "a negative number" : text(value);
    const std::string rule = limit == format_.vocab_size
                                 ? text("vocab_size is ", limit)
                                 : text("ids of this dtype, or on their way to a device, end at ", limit - 1);
    return CorruptShardError(
        shard.path(), segment.sample,
        text("stream \"", shard.stream(), "\": sample ", segment.sample, " of ", shard.path(), " has ", shown, " ",
             where, " but ", rule,
             ". Check that the stream was tokenized with this tokenizer and is read with the right "
             "bytes_dtype."));
  }

  // Document numbers and positions of all tokens of a row.
  void number_documents(const RowFields& fields, std::span<const Segment> segments) const {
    if (!fields[Field::kSequenceId] && !fields[Field::kPositionIds]) return;
    int document = 0;
    for_each_document(format_, segments, fields[Field::kInputIds], [&](uint32_t begin, uint32_t end, uint32_t) {
      fields[Field::kSequenceId].set(begin, end, document++);
      fields[Field::kPositionIds].count(begin, end);
    });
  }

  // Whether sequence_id of a row counts document tokens, over padding too.
  bool counts_document_tokens(std::span<const Segment> segments) const {
    return format_.counts_padding && format_.documents != BatchFormat::Documents::kSamples && !segments.empty() &&
           format_.document_tokens[segments.front().stream] >= 0;
  }

  // sequence_id as LLM Foundry's ConcatenatedSequenceCollatorWrapper numbers it (llm-foundry 0.22, data/text_data.py).
  void count_document_tokens(const RowFields& fields, int64_t token) const {
    const bool counts_itself = format_.documents == BatchFormat::Documents::kBos;
    const FieldRow& sequence_id = fields[Field::kSequenceId];
    if (!sequence_id) return;
    with_token(fields[Field::kInputIds].type, [&]<typename Id>(Id) {
      with_integer(sequence_id.type, [&]<typename Integer>(Integer) {
        const Id* ids = fields[Field::kInputIds].at<Id>(0);
        Integer* out = sequence_id.at<Integer>(0);
        Integer before = 0;
        for (uint32_t i = 0; i < format_.seq_len; ++i) {
          const Integer after = static_cast<Integer>(before + (static_cast<int64_t>(ids[i]) == token));
          out[i] = counts_itself ? after : before;
          before = after;
        }
      });
    });
  }

  void pad(const RowFields& fields, uint32_t begin, uint32_t end) const {
    if (begin == end) return;
    fields[Field::kInputIds].set(begin, end, format_.pad_id);
    fields[Field::kLabels].set(begin, end, kIgnoreLabel);
    fields[Field::kLossMask].set(begin, end, 0);
    fields[Field::kAttentionMask].set(begin, end, 0);
    fields[Field::kPositionIds].set(begin, end, 0);
    fields[Field::kSequenceId].set(begin, end, kNoDocument);
    fields[Field::kStreamIds].set(begin, end, kNoDocument);
  }

  const BatchFormat& format_;
  BatchPlan& plan_;
  const Limits limits_;
};

/// The shards that rows [begin, end) read from, each once: others of the plan are not touched by their job.
std::vector<const Shard*> shards_under(const BatchPlan& plan, uint32_t begin, uint32_t end) {
  std::vector<const Shard*> shards;
  for (uint32_t i = plan.rows.first_segment(begin); i < plan.rows.first_segment(end); ++i)
    shards.push_back(plan.shards[plan.segment_shards[i]].get());
  std::sort(shards.begin(), shards.end());
  shards.erase(std::unique(shards.begin(), shards.end()), shards.end());
  return shards;
}

/// Places in the rows of a batch, one behind the other, of which there may be only so many.
class CuSeqlens {
 public:
  CuSeqlens(const BatchFormat& format, std::byte* buffer)
      : at_(reinterpret_cast<int32_t*>(buffer + format.fields_bytes())),  // int32 by contract, aligned as fields are
        last_(at_ + format.cu_seqlens_capacity) {
    *at_ = 0;
  }

  uint32_t longest() const { return longest_; }

  /// Ends a sequence, unless it would be empty.
  void add(uint32_t end) {
    const auto begin = static_cast<uint32_t>(*at_);  // what was written is never negative
    if (end == begin) return;
    longest_ = std::max(longest_, end - begin);
    if (at_ == last_)
      throw ArgumentError(
          "a batch has more documents and paddings than cu_seqlens has room for: raise cu_seqlens_capacity, "
          "or set max_samples_per_row.");
    *++at_ = static_cast<int32_t>(end);
  }

  void fill_up() { std::fill(at_, last_ + 1, *at_); }

 private:
  int32_t* at_;
  int32_t* const last_;
  uint32_t longest_ = 0;
};

uint32_t write_cu_seqlens(const BatchFormat& format, const BatchPlan& plan, std::byte* buffer) {
  CuSeqlens ends(format, buffer);
  for (uint32_t row = 0; row < format.num_rows; ++row) {
    const std::span<const Segment> segments = plan.rows.row(row);
    const uint32_t first = row * format.seq_len;
    ends.add(first + places_of(format, segments).begin);  // padding on the left
    for_each_document(format, segments, RowFields(format, row, buffer)[Field::kInputIds],
                      [&](uint32_t, uint32_t, uint32_t padded_end) { ends.add(first + padded_end); });
    ends.add(first + format.seq_len);
  }
  ends.fill_up();
  return ends.longest();
}

}  // namespace

void fill_rows(const BatchFormat& format, BatchPlan& plan, uint32_t begin, uint32_t end, std::byte* buffer) {
  const std::vector<const Shard*> shards = shards_under(plan, begin, end);
  std::vector<const MappedFile*> mappings;
  mappings.reserve(shards.size());
  for (const Shard* shard : shards)
    if (const MappedFile* mapping = shard->body().mapping()) mappings.push_back(mapping);
  const FaultGuard guard(std::move(mappings));
  const auto check_faults = [&] {
    const MappedFile* lost = guard.faulted();
    if (lost == nullptr) return;
    const auto shard =
        std::find_if(shards.begin(), shards.end(), [&](const Shard* s) { return s->body().mapping() == lost; });
    throw(*shard)->corrupt(CorruptShardError::kWholeShard, kWasCut);
  };
  try {
    const RowFiller filler(format, plan);
    for (uint32_t row = begin; row < end; ++row) {
      if (row + 1 < end) filler.prefetch(row + 1);
      filler.fill(row, buffer);
    }
  } catch (const CorruptShardError&) {
    check_faults();  // zeros in place of lost pages look like a corrupt sample
    throw;
  }
  check_faults();
}

uint32_t finish_batch(const BatchFormat& format, BatchPlan& plan, std::byte* buffer) {
  const std::span<const Segment> segments = plan.rows.segments();
  for (size_t i = 0; i < segments.size(); ++i) {
    plan.rows.count_loss(segments[i].stream, plan.segment_loss[i]);
    if (plan.segment_loss[i] == 0 && plan.shards[plan.segment_shards[i]]->has_labels() && segments[i].size() > 0)
      plan.rows.count_no_loss(segments[i].stream);
  }
  plan.row_tokens.assign(plan.rows.size(), 0);
  plan.row_loss.assign(plan.rows.size(), 0);
  for (uint32_t row = 0; row < plan.rows.size(); ++row)
    for (uint32_t i = plan.rows.first_segment(row); i < plan.rows.first_segment(row + 1); ++i) {
      plan.row_tokens[row] += segments[i].size();
      plan.row_loss[row] += plan.segment_loss[i];
    }
  if (format.cu_seqlens_capacity == 0) return 0;
  return write_cu_seqlens(format, plan, buffer);
}

}  // namespace stoker
