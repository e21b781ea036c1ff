#include "order/sample_list.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <utility>

#include "base/error.h"

namespace stoker {

SampleList::SampleList(const std::vector<Stream>& streams, size_t most_ahead) : most_ahead_(most_ahead) {
  if (most_ahead_ < 1) throw ArgumentError("most_ahead must be at least 1.");
  uint64_t end = 0;
  for (const Stream& stream : streams)
    for (uint32_t shard = 0; shard < stream.shard_sizes.size(); ++shard)
      if (const uint64_t size = stream.shard_sizes[shard]; size > 0)
        shards_.push_back({end += size, stream.number, shard});
}

std::vector<SampleList::ShardBounds>::const_iterator SampleList::shard_of(uint64_t sample) const {
  const auto shard = std::upper_bound(shards_.begin(), shards_.end(), sample,
                                      [](uint64_t number, const ShardBounds& bounds) { return number < bounds.end; });
  if (shard == shards_.end())
    throw ArgumentError(
        text("there is no sample ", sample, ": the streams have ", shards_.empty() ? 0 : shards_.back().end, "."));
  return shard;
}

uint64_t SampleList::begin_of(std::vector<ShardBounds>::const_iterator shard) const {
  return shard == shards_.begin() ? 0 : std::prev(shard)->end;
}

SamplePlace SampleList::place(uint64_t sample) const {
  const auto shard = shard_of(sample);
  return {shard->stream, shard->shard, static_cast<uint32_t>(sample - begin_of(shard))};
}

uint64_t SampleList::shard_size(uint64_t sample) const {
  const auto shard = shard_of(sample);
  return shard->end - begin_of(shard);
}

bool SampleList::push(Chunk chunk) {
  const std::vector<uint32_t>& ends = chunk.batch_ends;
  if (ends.empty() || !std::is_sorted(ends.begin(), ends.end()) || ends.back() != chunk.samples.size())
    throw ArgumentError(
        text("the batches of a chunk must end in order, the last one with its ", chunk.samples.size(), " samples."));
  {
    std::unique_lock lock(mutex_);
    taken_.wait(lock, [this] { return is_closed_ || chunks_.size() < most_ahead_; });
    if (is_closed_) return false;
    chunks_.push_back(std::move(chunk));
  }
  pushed_.notify_one();
  return true;
}

void SampleList::fail(std::exception_ptr error) {
  {
    const std::lock_guard lock(mutex_);
    error_ = std::move(error);
  }
  pushed_.notify_one();
}

SampleList::Chunk SampleList::take_front() {
  Chunk chunk = std::move(chunks_.front());
  chunks_.pop_front();
  taken_.notify_one();
  return chunk;
}

SampleList::Chunk SampleList::take() {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  is_awaited_ = true;
  pushed_.wait(lock, [this] { return is_closed_ || error_ || !chunks_.empty(); });
  is_awaited_ = false;
  waited_s_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (is_closed_) throw ClosedError("the loader is closed.");
  if (chunks_.empty()) std::rethrow_exception(error_);
  return take_front();
}

std::optional<SampleList::Chunk> SampleList::take_if_there() {
  const std::lock_guard lock(mutex_);
  if (is_closed_ || chunks_.empty()) return std::nullopt;
  return take_front();
}

bool SampleList::is_awaited() const {
  const std::lock_guard lock(mutex_);
  return is_awaited_;
}

double SampleList::waited_s() const {
  const std::lock_guard lock(mutex_);
  return waited_s_;
}

void SampleList::close() {
  {
    const std::lock_guard lock(mutex_);
    is_closed_ = true;
  }
  pushed_.notify_all();
  taken_.notify_all();
}

}  // namespace stoker
