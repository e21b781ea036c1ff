#include "fill/fill.h"

#include <algorithm>
#include <array>
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

template <typename Integer>
class RowFiller {
 public:
  RowFiller(const BatchFormat& format, const BatchPlan& plan)
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
    uint32_t size = 0;
    for (const Segment& segment : segments) size += segment.size();
    const uint32_t begin = format_.pad_left ? format_.seq_len - size : 0;
    const uint32_t end = begin + size;

    uint32_t at = begin;
    int document = 0;
    for (uint32_t i = 0; i < segments.size(); ++i) {
      const Segment& segment = segments[i];
      if (segment.size() == 0) continue;
      const uint32_t next = at + segment.size();
      copy_tokens(segment, *plan_.shards[plan_.segment_shards[plan_.rows.first_segment(row) + i]], at, fields);
      fields.set(Field::kStreamIds, at, next, static_cast<Integer>(segment.stream));
      if (format_.documents == BatchFormat::Documents::kSamples) number(fields, at, next, document++);
      at = next;
    }
    if (format_.documents != BatchFormat::Documents::kSamples) number_documents(fields, begin, end);
    fields.set(Field::kAttentionMask, begin, end, 1);
    pad(fields, 0, begin);
    pad(fields, end, format_.seq_len);
  }

 private:
  void copy_tokens(const Segment& segment, const Shard& shard, uint32_t at, const RowFields<Integer>& fields) const {
    const TokenArray tokens = shard.parse(segment.sample).tokens;
    Integer* labels = fields[Field::kLabels];
    const uint64_t largest = widen(tokens, segment.token_begin, segment.size(), limit_, fields[Field::kInputIds] + at,
                                   labels == nullptr ? nullptr : labels + at);
    if (largest < limit_) return;
    const std::string value = largest == UINT64_MAX ? "a negative number" : text(largest);
    const std::string rule =
        limit_ == format_.vocab_size ? text("vocab_size is ", limit_) : text("ids of this dtype end at ", limit_ - 1);
    throw CorruptShardError(shard.path(), segment.sample,
                            text("stream \"", shard.stream(), "\": sample ", segment.sample, " of ", shard.path(),
                                 " has ", value, " among its token ids but ", rule,
                                 ". Check that the stream was tokenized with this tokenizer and is read with the right "
                                 "bytes_dtype."));
  }

  // Document number and positions of the tokens [begin, end) of one document.
  static void number(const RowFields<Integer>& fields, uint32_t begin, uint32_t end, int document) {
    fields.set(Field::kSequenceId, begin, end, document);
    if (Integer* positions = fields[Field::kPositionIds]) std::iota(positions + begin, positions + end, 0);
  }

  // Cuts [begin, end) at the document token. A row's first token begins document 0, whatever it is.
  void number_documents(const RowFields<Integer>& fields, uint32_t begin, uint32_t end) const {
    if (fields[Field::kSequenceId] == nullptr && fields[Field::kPositionIds] == nullptr) return;
    const Integer* ids = fields[Field::kInputIds];
    const uint32_t lead = format_.documents == BatchFormat::Documents::kEos ? 1 : 0;  // EOS ends, BOS begins
    int document = 0;
    for (uint32_t at = begin; at < end;) {
      uint32_t next = at + 1;
      while (next < end && ids[next - lead] != format_.document_token) ++next;
      number(fields, at, next, document++);
      at = next;
    }
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
  const BatchPlan& plan_;
  const uint64_t limit_;  // token ids are below it
};

template <typename Integer>
void fill_rows_as(const BatchFormat& format, const BatchPlan& plan, uint32_t begin, uint32_t end, std::byte* buffer) {
  const RowFiller<Integer> filler(format, plan);
  for (uint32_t row = begin; row < end; ++row) {
    if (row + 1 < end) filler.prefetch(row + 1);
    filler.fill(row, buffer);
  }
}

}  // namespace

void fill_rows(const BatchFormat& format, const BatchPlan& plan, uint32_t begin, uint32_t end, std::byte* buffer) {
  std::vector<const MappedFile*> mappings;
  mappings.reserve(plan.shards.size());
  for (const auto& shard : plan.shards)
    if (const MappedFile* mapping = shard->body().mapping()) mappings.push_back(mapping);
  const FaultGuard guard(std::move(mappings));
  const auto check_faults = [&] {
    const MappedFile* lost = guard.faulted();
    if (lost == nullptr) return;
    const auto& shard = *std::find_if(plan.shards.begin(), plan.shards.end(),
                                      [&](const auto& s) { return s->body().mapping() == lost; });
    throw shard->corrupt(CorruptShardError::kWholeShard, kWasCut);
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

}  // namespace stoker
