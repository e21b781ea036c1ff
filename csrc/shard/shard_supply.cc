#include "shard/shard_supply.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"

namespace stoker {

void ShardSupply::want(ShardId id) {
  {
    const std::lock_guard lock(mutex_);
    if (!entries_.try_emplace(id).second) return;
    queue_.push_back(id);
  }
  wanted_.notify_one();
}

void ShardSupply::unwant(ShardId id) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end() || found->second.state != Entry::State::kWanted || found->second.num_waiting > 0) return;
  entries_.erase(found);
  queue_.erase(std::find(queue_.begin(), queue_.end(), id));
}

bool ShardSupply::is_ready(ShardId id) const {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  return found != entries_.end() && found->second.state == Entry::State::kReady;
}

MadeFile ShardSupply::await(ShardId id) {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  Entry& entry = entries_[id];
  if (entry.state == Entry::State::kReady) return entry.file;
  if (entry.state == Entry::State::kWanted) {
    const auto place = std::find(queue_.begin(), queue_.end(), id);
    if (place != queue_.end()) queue_.erase(place);
    queue_.push_front(id);
    wanted_.notify_one();
  }
  awaited_ = id;
  ++entry.num_waiting;
  made_.wait(lock, [&] { return is_stopped_ || is_closed_ || entry.state >= Entry::State::kReady; });
  --entry.num_waiting;
  awaited_.reset();
  waited_s_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (entry.state == Entry::State::kReady) return entry.file;
  if (entry.state == Entry::State::kFailed) std::rethrow_exception(entry.error);
  throw ClosedError("the loader is closed.");
}

void ShardSupply::forget(ShardId id) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end() || found->second.state != Entry::State::kReady || found->second.num_waiting > 0) return;
  entries_.erase(found);
}

double ShardSupply::waited_s() const {
  const std::lock_guard lock(mutex_);
  return waited_s_;
}

std::optional<ShardId> ShardSupply::awaited() const {
  const std::lock_guard lock(mutex_);
  return awaited_;
}

void ShardSupply::stop() {
  {
    const std::lock_guard lock(mutex_);
    is_stopped_ = true;
  }
  made_.notify_all();
}

void ShardSupply::resume() {
  std::map<ShardId, Entry> failed;  // let go after the mutex: an error may be anybody's object
  const std::lock_guard lock(mutex_);
  is_stopped_ = false;
  for (auto next = entries_.begin(); next != entries_.end();) {
    const auto place = next++;
    const Entry& entry = place->second;
    if (entry.state == Entry::State::kFailed && entry.num_waiting == 0) failed.insert(entries_.extract(place));
  }
}

std::optional<ShardId> ShardSupply::take() {
  std::unique_lock lock(mutex_);
  wanted_.wait(lock, [this] { return is_closed_ || !queue_.empty(); });
  if (is_closed_) return std::nullopt;
  const ShardId id = queue_.front();
  queue_.pop_front();
  entries_[id].state = Entry::State::kMaking;
  return id;
}

void ShardSupply::set_ready(ShardId id, MadeFile file) {
  {
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_[id];
    entry.file = std::move(file);
    entry.state = Entry::State::kReady;
  }
  made_.notify_all();
}

void ShardSupply::set_failed(ShardId id, std::exception_ptr error) {
  {
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_[id];
    entry.error = std::move(error);
    entry.state = Entry::State::kFailed;
  }
  made_.notify_all();
}

void ShardSupply::close() {
  {
    const std::lock_guard lock(mutex_);
    is_closed_ = true;
  }
  wanted_.notify_all();
  made_.notify_all();
}

}  // namespace stoker
