// The samples of a rank, batch by batch, in an order that somebody else works out while the run goes on.
//
// Protocol: the lister pushes chunks of whole batches, and waits while enough of them have not been taken; planning
// takes them, and waits where there is none. What the lister fails with comes in its place. close() ends all waiting,
// for good. One mutex guards all of it.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <vector>

namespace stoker {

/// Where a sample lies.
struct SamplePlace {
  uint32_t stream;
  uint32_t shard;   // of the stream, in file order
  uint32_t sample;  // in the shard
};

/// Thread-safe, for one lister and one that takes.
class SampleList {
 public:
  /// A stream whose samples are numbered, behind those of the streams before it.
  struct Stream {
    uint32_t number;                    // among all streams of the order
    std::vector<uint64_t> shard_sizes;  // in file order: samples
  };
  /// Batches that follow each other.
  struct Chunk {
    std::vector<uint64_t> samples;     // numbered over all shards of all streams
    std::vector<uint32_t> batch_ends;  // among samples
    uint32_t first_packer = 0;         // of the first batch; the next one's is the next (see LayoutSpec::num_packers)
    bool begins_anew = false;          // packers forget what they have left over
  };

  /// The lister is `most_ahead` chunks ahead at most.
  SampleList(const std::vector<Stream>& streams, size_t most_ahead);

  /// Where a sample lies. Raises ArgumentError where there is no such sample.
  SamplePlace place(uint64_t sample) const;

  /// How many samples the shard has that it lies in.
  uint64_t shard_size(uint64_t sample) const;

  /// Waits until there is room for a chunk, and takes it over. Returns false once the list is closed. Raises
  /// ArgumentError where the chunk's batches are not of its samples.
  bool push(Chunk chunk);

  /// There will be no more chunks, since the lister has failed.
  void fail(std::exception_ptr error);

  /// Waits for the next chunk. Raises what the lister has failed with, at every call, or ClosedError.
  Chunk take();

  /// The next chunk, if it is there. Never waits or raises.
  std::optional<Chunk> take_if_there();

  /// Whether take() is waiting, and how many seconds it has waited in all.
  bool is_awaited() const;
  double waited_s() const;

  void close();

 private:
  struct ShardBounds {
    uint64_t end;  // samples before it and in it, over all streams
    uint32_t stream;
    uint32_t shard;
  };
  std::vector<ShardBounds>::const_iterator shard_of(uint64_t sample) const;
  uint64_t begin_of(std::vector<ShardBounds>::const_iterator shard) const;
  Chunk take_front();

  std::vector<ShardBounds> shards_;  // that are not empty
  const size_t most_ahead_;

  mutable std::mutex mutex_;
  std::condition_variable pushed_;
  std::condition_variable taken_;

  // Guarded by mutex_.
  std::deque<Chunk> chunks_;
  std::exception_ptr error_;
  bool is_awaited_ = false;
  double waited_s_ = 0;
  bool is_closed_ = false;
};

}  // namespace stoker
