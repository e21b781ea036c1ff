// Shards that are made while a run goes on (materialized: tokenized, or fetched) before they can be opened.
//
// Protocol. A shard is unknown, wanted, being made, ready or failed. want() and await() make an unknown one wanted;
// the maker takes wanted ones, those that are awaited first, then in the order in which they were wanted, and owes a
// set_ready() or set_failed() for each. What is wanted and not taken yet can be unwanted. await() returns when the
// shard is ready, raises what it has failed with, and raises ClosedError between stop() and resume(). One mutex guards
// all of it; nothing is done under it but changing states.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <string>

namespace stoker {

/// Which shard of which stream.
struct ShardId {
  uint32_t stream;
  uint32_t shard;
  friend bool operator==(ShardId a, ShardId b) { return a.stream == b.stream && a.shard == b.shard; }
  friend bool operator<(ShardId a, ShardId b) { return a.stream != b.stream ? a.stream < b.stream : a.shard < b.shard; }
};

/// A file that was made.
struct MadeFile {
  std::string path;
  uint64_t size_bytes = 0;
};

/// Thread-safe.
class ShardSupply {
 public:
  /// Says that a shard will be needed. It is not made twice.
  void want(ShardId id);

  /// Takes want() back where nobody has begun to make the shard.
  void unwant(ShardId id);

  bool is_ready(ShardId id) const;

  /// Waits until a shard is made. Raises what it has failed with, or ClosedError.
  MadeFile await(ShardId id);

  /// The file of a ready shard is gone, or is not what it was: the next await() has it made again.
  void forget(ShardId id);

  /// Seconds that await() has waited, in all.
  double waited_s() const;

  /// What is awaited.
  std::optional<ShardId> awaited() const;

  /// Ends every await(), and those to come.
  void stop();

  /// Lets await() wait again. What has failed is unknown again.
  void resume();

  /// For the maker: waits for a wanted shard and takes it. Nothing after close().
  std::optional<ShardId> take();
  void set_ready(ShardId id, MadeFile file);
  void set_failed(ShardId id, std::exception_ptr error);

  /// There is no maker any more: take() and await() end, for good.
  void close();

 private:
  struct Entry {
    enum class State { kWanted, kMaking, kReady, kFailed };
    State state = State::kWanted;
    MadeFile file;
    std::exception_ptr error;
    uint32_t num_waiting = 0;  // in await(): the entry must stay
  };

  mutable std::mutex mutex_;
  std::condition_variable wanted_;
  std::condition_variable made_;

  // Guarded by mutex_.
  std::map<ShardId, Entry> entries_;  // all but the unknown ones
  std::deque<ShardId> queue_;         // those that are wanted
  std::optional<ShardId> awaited_;
  double waited_s_ = 0;
  bool is_stopped_ = false;
  bool is_closed_ = false;
};

}  // namespace stoker
