#include "shard/shard_supply.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include "base/error.h"

namespace stoker {

void ShardSupply::want(ShardId id) {
  {
    const std::lock_guard lock(mutex_);
    const auto [place, is_new] = entries_.try_emplace(id);
    place->second.is_wanted = true;
    if (!is_new) return;
    queue_.push_back(id);
  }
  wanted_.notify_one();
}

void ShardSupply::unwant(ShardId id) {
  Entry unwanted;  // let go after the mutex: its file is closed
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end()) return;
  Entry& entry = found->second;
  entry.is_wanted = false;
  if (entry.num_waiting > 0 || entry.state == Entry::State::kSupplying || entry.state == Entry::State::kFailed) return;
  if (entry.state == Entry::State::kWanted) queue_.erase(std::find(queue_.begin(), queue_.end(), id));
  unwanted = std::move(entry);
  entries_.erase(found);
}

bool ShardSupply::is_ready(ShardId id) const {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  return found != entries_.end() && found->second.state == Entry::State::kReady;
}

SuppliedFile ShardSupply::hand_over(Entries::iterator entry) {
  SuppliedFile file = std::move(entry->second.file);
  if (entry->second.num_waiting == 0) {
    entries_.erase(entry);
  } else {  // others wait for it, too: it is supplied again
    entry->second.state = Entry::State::kWanted;
    queue_.push_front(entry->first);
    wanted_.notify_one();
  }
  return file;
}

std::optional<SuppliedFile> ShardSupply::take_file(ShardId id) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end() || found->second.state != Entry::State::kReady) return std::nullopt;
  return hand_over(found);
}

SuppliedFile ShardSupply::await(ShardId id) {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  const auto place = entries_.try_emplace(id).first;
  Entry& entry = place->second;
  if (entry.state == Entry::State::kReady) return hand_over(place);
  if (entry.state == Entry::State::kWanted) {
    const auto queued = std::find(queue_.begin(), queue_.end(), id);
    if (queued != queue_.end()) queue_.erase(queued);
    queue_.push_front(id);
    wanted_.notify_one();
  }
  awaited_ = id;
  ++entry.num_waiting;
  made_.wait(lock, [&] { return is_stopped_ || is_closed_ || entry.state >= Entry::State::kReady; });
  --entry.num_waiting;
  awaited_.reset();
  waited_s_[id.stream] += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (entry.state == Entry::State::kReady) return hand_over(place);
  if (entry.state == Entry::State::kFailed) std::rethrow_exception(entry.error);
  throw ClosedError("the loader is closed.");
}

std::vector<ShardId> ShardSupply::take_news() {
  const std::lock_guard lock(mutex_);
  return std::exchange(news_, {});
}

double ShardSupply::waited_s() const {
  const std::lock_guard lock(mutex_);
  return std::accumulate(waited_s_.begin(), waited_s_.end(), 0.0,
                         [](double sum, const auto& of_stream) { return sum + of_stream.second; });
}

double ShardSupply::waited_s(uint32_t stream) const {
  const std::lock_guard lock(mutex_);
  const auto found = waited_s_.find(stream);
  return found == waited_s_.end() ? 0 : found->second;
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
  Entries unknown;  // let go after the mutex: files are closed, and an error may be anybody's object
  const std::lock_guard lock(mutex_);
  is_stopped_ = false;
  queue_.clear();
  news_.clear();
  for (auto next = entries_.begin(); next != entries_.end();) {
    const auto place = next++;
    Entry& entry = place->second;
    entry.is_wanted = false;
    if (entry.num_waiting > 0 && entry.state == Entry::State::kWanted) queue_.push_back(place->first);
    if (entry.num_waiting == 0 && entry.state != Entry::State::kSupplying) unknown.insert(entries_.extract(place));
  }
}

std::optional<ShardId> ShardSupply::take() {
  std::unique_lock lock(mutex_);
  wanted_.wait(lock, [this] { return is_closed_ || !queue_.empty(); });
  if (is_closed_) return std::nullopt;
  const ShardId id = queue_.front();
  queue_.pop_front();
  entries_[id].state = Entry::State::kSupplying;
  return id;
}

void ShardSupply::set_ready(ShardId id, SuppliedFile file) {
  settle(id, Entry::State::kReady, std::move(file), nullptr);
}

void ShardSupply::set_failed(ShardId id, std::exception_ptr error) {
  settle(id, Entry::State::kFailed, {}, std::move(error));
}

void ShardSupply::settle(ShardId id, Entry::State state, SuppliedFile file, std::exception_ptr error) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = entries_.find(id);
    if (found == entries_.end()) return;
    Entry& entry = found->second;
    if (!entry.is_needed()) {  // any more; the file is closed by the caller's hand, after the mutex
      entries_.erase(found);
      return;
    }
    entry.state = state;
    entry.file = std::move(file);
    entry.error = std::move(error);
    if (state == Entry::State::kReady) news_.push_back(id);
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
