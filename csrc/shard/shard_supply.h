// Shards that somebody supplies while a run goes on: fetches them, or makes them (see StreamFiles::Supply).
//
// Protocol. A shard is unknown, wanted, being supplied, ready or failed. want() and await() make an unknown one wanted;
// the supplier takes wanted ones, those that are awaited first, then in the order in which they were wanted, and owes a
// set_ready() or set_failed() for each. The file of a ready shard is handed over, open, to the first await() or
// take_file(): nobody can replace or remove it on the way. Then the shard is unknown again, and so it is after
// unwant(), at the latest when the supplier is done with it. await() raises what the shard has failed with, and
// ClosedError between stop() and resume(). One mutex guards all of it; nothing is done under it but changing states.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "base/file.h"

namespace stoker {

/// Which shard of which stream.
struct ShardId {
  uint32_t stream;
  uint32_t shard;
  friend bool operator==(ShardId a, ShardId b) { return a.stream == b.stream && a.shard == b.shard; }
  friend bool operator<(ShardId a, ShardId b) { return a.stream != b.stream ? a.stream < b.stream : a.shard < b.shard; }
};

/// The file of a shard.
struct SuppliedFile {
  std::shared_ptr<File> file;  // null: the shard can't be had, and the run goes on without it, its samples empty
  bool is_compressed = false;  // with zstd, as the index says
};

/// Thread-safe.
class ShardSupply {
 public:
  /// Says that a shard will be needed. It is not supplied twice.
  void want(ShardId id);

  /// Takes want() back.
  void unwant(ShardId id);

  /// Waits until a shard is ready and takes its file. Raises what it has failed with, or ClosedError.
  SuppliedFile await(ShardId id);

  /// The file of a ready shard; nothing of another. Never waits.
  std::optional<SuppliedFile> take_file(ShardId id);

  bool is_ready(ShardId id) const;

  /// The shards that have become ready since the last call.
  std::vector<ShardId> take_news();

  /// Seconds that await() has waited, in all, and for shards of a stream.
  double waited_s() const;
  double waited_s(uint32_t stream) const;

  /// What is awaited.
  std::optional<ShardId> awaited() const;

  /// Ends every await(), and those to come.
  void stop();

  /// Lets await() wait again. What was wanted before is not any more, and what has failed is unknown again.
  void resume();

  /// For the supplier: waits for a wanted shard and takes it. Nothing after close().
  std::optional<ShardId> take();
  void set_ready(ShardId id, SuppliedFile file);
  void set_failed(ShardId id, std::exception_ptr error);

  /// There is no supplier any more: take() and await() end, for good.
  void close();

 private:
  struct Entry {
    enum class State { kWanted, kSupplying, kReady, kFailed };
    State state = State::kWanted;
    bool is_wanted = false;    // by want(), and not taken back
    uint32_t num_waiting = 0;  // in await(): the entry must stay
    SuppliedFile file;
    std::exception_ptr error;
    bool is_needed() const { return is_wanted || num_waiting > 0; }
  };
  using Entries = std::map<ShardId, Entry>;

  SuppliedFile hand_over(Entries::iterator entry);
  void settle(ShardId id, Entry::State state, SuppliedFile file, std::exception_ptr error);

  mutable std::mutex mutex_;
  std::condition_variable wanted_;
  std::condition_variable made_;

  // Guarded by mutex_.
  Entries entries_;            // all but the unknown ones
  std::deque<ShardId> queue_;  // those that are wanted
  std::vector<ShardId> news_;
  std::optional<ShardId> awaited_;
  std::map<uint32_t, double> waited_s_;  // by stream
  bool is_stopped_ = false;
  bool is_closed_ = false;
};

}  // namespace stoker
