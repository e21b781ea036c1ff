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

constexpr size_t kNumFields = 6;

/// The fields of one row; null where the batch does not have the field.
template <typename Integer>
class RowFields {
 public:
  RowFields(const BatchFormat& format, uint32_t row, std::byte* buffer) {
    for (const Field field : format.fields) {
      // The buffer holds objects of this type by contract.
      at_[static_cast<size_t>(field)] = reinterpret_cast<Integer*>(buffer + row * format.row_bytes());
      buffer += format.field_bytes();
    }
  }
  Integer* operator[](Field field) const { return at_[static_cast<size_t>(field)]; }

  void set(Field field, uint32_t begin, uint32_t end, Integer value) const {
    if (Integer* row = (*this)[field]) std::fill(row + begin, row + end, value);
  }

 private:
  std::array<Integer*, kNumFields> at_{};
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
template <typename Integer, typename Visit>
void for_each_document(const BatchFormat& format, std::span<const Segment> segments, const Integer* ids, Visit visit) {
  // Cuts [begin, end) at a document token, which is its document's last (EOS) or first (BOS).
  const auto cut = [&](uint32_t begin, uint32_t end, uint32_t padded_end, int64_t token) {
    const uint32_t lead = format.documents == BatchFormat::Documents::kEos ? 1 : 0;
    while (begin < end) {
      uint32_t next = begin + 1;
      while (next < end && ids[next - lead] != token) ++next;
      visit(begin, next, next == end ? padded_end : next);
      begin = next;
    }
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

template <typename Integer>
class RowFiller {
 public:
  RowFiller(const BatchFormat& format, BatchPlan& plan)
      : format_(format),
        plan_(plan),
        limit_(std::min(format.vocab_size > 0 ? format.vocab_size : UINT64_MAX,
                        uint64_t{std::numeric_limits<Integer>::max()} + 1)) {}

  /// Rows lie anywhere in the shards: the wait for the first bytes of the next one is as long as filling a third of it.
  void prefetch(uint32_t row) const {
    const uint32_t first = plan_.rows.first_segment(row);
    if (plan_.rows.row(row).empty()) return;
    const Segment& segment = plan_.rows.segments()[first];
    plan_.shards[plan_.segment_shards[first]]->prefetch(segment.sample, segment.token_begin);
  }

  void fill(uint32_t row, std::byte* buffer) const {
    const RowFields<Integer> fields(format_, row, buffer);
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
      fields.set(Field::kStreamIds, at, next, static_cast<Integer>(segment.stream));
      fields.set(Field::kAttentionMask, at, next, 1);
      at += format_.room(segment.size());
      pad(fields, next, at);
    }
    number_documents(fields, segments);
    pad(fields, 0, begin);
    pad(fields, end, format_.seq_len);
  }

 private:
  // Tokens and labels of a segment. Returns how many labels a model predicts: not that of the row's first token.
  uint32_t copy(const Segment& segment, const Shard& shard, uint32_t at, bool is_first,
                const RowFields<Integer>& fields) const {
    const SampleTokens sample = shard.parse(segment.sample);
    Integer* ids = fields[Field::kInputIds] + at;
    Integer* labels = fields[Field::kLabels] == nullptr ? nullptr : fields[Field::kLabels] + at;
    const uint64_t largest =
        widen(sample.tokens, segment.token_begin, segment.size(), limit_, ids, sample.labels ? nullptr : labels);
    if (largest >= limit_) throw bad_value(segment, shard, largest, "among its token ids");
    uint32_t loss = segment.size();
    bool first_has_loss = true;
    if (sample.labels) {
      const LabelCounts counts = widen_labels(*sample.labels, segment.token_begin, segment.size(), labels);
      if (counts.largest >= limit_)
        throw bad_value(segment, shard, counts.largest, "among its labels, which are -100 or token ids,");
      loss -= counts.num_ignored;
      first_has_loss = value_at(*sample.labels, segment.token_begin) != kIgnoreLabel;
    }
    const bool is_masked = format_.is_packed && !is_first;
    if (is_masked && labels != nullptr) labels[0] = kIgnoreLabel;
    return loss - (first_has_loss && (is_masked || at == 0));
  }

  CorruptShardError bad_value(const Segment& segment, const Shard& shard, uint64_t value, const char* where) const {
    const std::string shown = value == UINT64_MAX ? "a negative number" : text(value);
    const std::string rule =
        limit_ == format_.vocab_size ? text("vocab_size is ", limit_) : text("ids of this dtype end at ", limit_ - 1);
    return CorruptShardError(
        shard.path(), segment.sample,
        text("stream \"", shard.stream(), "\": sample ", segment.sample, " of ", shard.path(), " has ", shown, " ",
             where, " but ", rule,
             ". Check that the stream was tokenized with this tokenizer and is read with the right "
             "bytes_dtype."));
  }

  // Document numbers and positions of all tokens of a row.
  void number_documents(const RowFields<Integer>& fields, std::span<const Segment> segments) const {
    Integer* positions = fields[Field::kPositionIds];
    if (fields[Field::kSequenceId] == nullptr && positions == nullptr) return;
    int document = 0;
    for_each_document(format_, segments, fields[Field::kInputIds], [&](uint32_t begin, uint32_t end, uint32_t) {
      fields.set(Field::kSequenceId, begin, end, document++);
      if (positions != nullptr) std::iota(positions + begin, positions + end, 0);
    });
  }

  void pad(const RowFields<Integer>& fields, uint32_t begin, uint32_t end) const {
    if (begin == end) return;
    fields.set(Field::kInputIds, begin, end, static_cast<Integer>(format_.pad_id));
    fields.set(Field::kLabels, begin, end, kIgnoreLabel);
    fields.set(Field::kAttentionMask, begin, end, 0);
    fields.set(Field::kPositionIds, begin, end, 0);
    fields.set(Field::kSequenceId, begin, end, kNoDocument);
    fields.set(Field::kStreamIds, begin, end, kNoDocument);
  }

  const BatchFormat& format_;
  BatchPlan& plan_;
  const uint64_t limit_;  // token ids are below it
};

template <typename Integer>
void fill_rows_as(const BatchFormat& format, BatchPlan& plan, uint32_t begin, uint32_t end, std::byte* buffer) {
  const RowFiller<Integer> filler(format, plan);
  for (uint32_t row = begin; row < end; ++row) {
    if (row + 1 < end) filler.prefetch(row + 1);
    filler.fill(row, buffer);
  }
}

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

template <typename Integer>
uint32_t write_cu_seqlens(const BatchFormat& format, const BatchPlan& plan, std::byte* buffer) {
  CuSeqlens ends(format, buffer);
  for (uint32_t row = 0; row < format.num_rows; ++row) {
    const std::span<const Segment> segments = plan.rows.row(row);
    const uint32_t first = row * format.seq_len;
    ends.add(first + places_of(format, segments).begin);  // padding on the left
    const Integer* ids = RowFields<Integer>(format, row, buffer)[Field::kInputIds];
    for_each_document(format, segments, ids,
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
    if (format.integer == BatchFormat::Integer::kInt32) {
      fill_rows_as<int32_t>(format, plan, begin, end, buffer);
    } else {
      fill_rows_as<int64_t>(format, plan, begin, end, buffer);
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
  if (format.cu_seqlens_capacity == 0) return 0;
  return format.integer == BatchFormat::Integer::kInt32 ? write_cu_seqlens<int32_t>(format, plan, buffer)
                                                        : write_cu_seqlens<int64_t>(format, plan, buffer);
}

}  // namespace stoker
