// Rows of segments: what layout decides and fill copies.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace stoker {

/// Tokens [token_begin, token_end) of one sample.
struct Segment {
  uint32_t stream;
  uint32_t shard;   // of the stream, in file order
  uint32_t sample;  // in the shard
  uint32_t token_begin;
  uint32_t token_end;
  uint32_t size() const { return token_end - token_begin; }
};

/// What the rows of a batch hold of one stream, and what became of samples on the way there.
struct StreamCounts {
  uint64_t units = 0;             // of the order: what weights count
  uint64_t tokens = 0;            // in the rows
  uint64_t truncated_tokens = 0;  // cut from samples longer than seq_len
  uint64_t truncated_samples = 0;
  uint64_t dropped_tokens = 0;  // of samples left out: longer than seq_len, or left over from packing
  uint64_t dropped_samples = 0;
  uint64_t empty_samples = 0;
  uint64_t loss_tokens = 0;      // in the rows: labels that a model predicts, which the first of a row is not
  uint64_t no_loss_samples = 0;  // parts of finetuning samples in the rows without a label

  StreamCounts& operator+=(const StreamCounts& other) {
    units += other.units;
    tokens += other.tokens;
    truncated_tokens += other.truncated_tokens;
    truncated_samples += other.truncated_samples;
    dropped_tokens += other.dropped_tokens;
    dropped_samples += other.dropped_samples;
    empty_samples += other.empty_samples;
    loss_tokens += other.loss_tokens;
    no_loss_samples += other.no_loss_samples;
    return *this;
  }
};

/// A sample of which no row has anything.
struct Unplaced {
  uint32_t stream;
  uint64_t dropped_tokens;  // 0: it is empty
};

/// Rows one after the other. An empty row is all padding.
class Rows {
 public:
  explicit Rows(uint32_t num_streams) : counts_(num_streams) {}

  void add(const Segment& segment) {
    segments_.push_back(segment);
    counts_[segment.stream].tokens += segment.size();
  }
  void count_unit(uint32_t stream) { ++counts_[stream].units; }
  void count_truncated(uint32_t stream, uint64_t tokens) {
    counts_[stream].truncated_tokens += tokens;
    ++counts_[stream].truncated_samples;
  }
  void count_dropped(uint32_t stream, uint64_t tokens) {
    counts_[stream].dropped_tokens += tokens;
    ++counts_[stream].dropped_samples;
  }
  void count_empty(uint32_t stream) { ++counts_[stream].empty_samples; }
  void count_unplaced(const Unplaced& sample) {
    count_unit(sample.stream);
    sample.dropped_tokens > 0 ? count_dropped(sample.stream, sample.dropped_tokens) : count_empty(sample.stream);
  }
  void count_loss(uint32_t stream, uint64_t tokens) { counts_[stream].loss_tokens += tokens; }
  void count_no_loss(uint32_t stream) { ++counts_[stream].no_loss_samples; }
  void end_row() { ends_.push_back(static_cast<uint32_t>(segments_.size())); }

  uint32_t size() const { return static_cast<uint32_t>(ends_.size()); }

  /// Where the segments of row `i` begin among all.
  uint32_t first_segment(uint32_t i) const { return i == 0 ? 0 : ends_[i - 1]; }
  std::span<const Segment> row(uint32_t i) const {
    return std::span(segments_).subspan(first_segment(i), ends_[i] - first_segment(i));
  }
  std::span<const Segment> segments() const { return segments_; }
  const std::vector<StreamCounts>& counts() const { return counts_; }

 private:
  std::vector<Segment> segments_;
  std::vector<uint32_t> ends_;  // of each row, among segments_
  std::vector<StreamCounts> counts_;
};

}  // namespace stoker
