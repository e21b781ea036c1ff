#include "shard/shard_store.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/error.h"
#include "base/process.h"

namespace stoker {
namespace {

// Names an expanded shard by what it was made from, so that a data set written anew is expanded anew.
std::string expanded_path(const StreamFiles& stream, const std::string& zip_path, const std::string& basename) {
  struct stat status{};
  if (::stat(zip_path.c_str(), &status) != 0) return {};  // opening the shard will say why
  return text(stream.expand_directory, "/", basename, ".", std::hex, status.st_size, "-", status.st_mtim.tv_sec, "-",
              status.st_mtim.tv_nsec);
}

ShardFile find_file(const StreamFiles& stream, const StreamFiles::Entry& entry) {
  ShardFile file;
  file.stream = stream.name;
  if (!stream.follow_links) file.root = stream.directory;
  file.raw_bytes = file.file_bytes = entry.raw_bytes;
  file.num_samples = entry.num_samples;
  file.tokens = entry.tokens;
  file.path = stream.directory + "/" + entry.raw_basename;
  // A compressed shard may lie there decompressed, as MosaicML Streaming leaves it in its cache.
  if (entry.zip_basename.empty() || ::access(file.path.c_str(), F_OK) == 0) return file;
  file.format = ShardFile::Format::kZstd;
  file.path = stream.directory + "/" + entry.zip_basename;
  file.file_bytes = entry.zip_bytes;
  if (!stream.expand_directory.empty()) file.expanded_path = expanded_path(stream, file.path, entry.raw_basename);
  return file;
}

}  // namespace

ShardStore::ShardStore(std::vector<StreamFiles> streams, uint64_t cache_bytes, Limits limits)
    : streams_(std::move(streams)),
      has_made_streams_(std::any_of(streams_.begin(), streams_.end(), [](const StreamFiles& s) { return s.is_made; })),
      limits_(limits),
      pieces_(cache_bytes) {}

std::shared_ptr<const Shard> ShardStore::get(ShardId id) {
  const uint64_t generation = claimed_by_;
  if (generation != kNobody) check_same_process(generation);
  {
    const std::lock_guard lock(mutex_);
    const auto found = open_.find(id);
    if (found != open_.end() && !found->second.shard->is_retired()) {
      Open& open = found->second;
      open.uses->splice(open.uses->end(), *open.uses, open.use);
      return open.shard;
    }
  }
  // Not under the mutex: files are slow. Two threads may open the same shard; the first one's is kept.
  Shards closed;
  std::shared_ptr<const Shard> kept = keep(id, open(id), closed);
  for (const auto& shard : closed) pieces_.drop(shard);
  return kept;
}

std::shared_ptr<const Shard> ShardStore::open(ShardId id) {
  const StreamFiles& stream = streams_[id.stream];
  const StreamFiles::Entry& entry = stream.shards[id.shard];
  const Schema& schema = stream.schemas[entry.schema];
  if (!stream.is_made) return std::make_shared<const Shard>(find_file(stream, entry), schema);
  for (;;) {
    const MadeFile made = supply_.await(id);
    ShardFile file;
    file.stream = stream.name;
    file.path = made.path;
    file.raw_bytes = file.file_bytes = made.size_bytes;
    file.num_samples = entry.num_samples;
    try {
      return std::make_shared<const Shard>(std::move(file), schema);
    } catch (const SystemError& error) {
      if (error.code != ENOENT) throw;  // somebody has cleaned up: it is made once more
      supply_.forget(id);
    }
  }
}

std::shared_ptr<const Shard> ShardStore::keep(ShardId id, std::shared_ptr<const Shard> opened, Shards& closed) {
  const std::lock_guard lock(mutex_);
  const auto close = [&](OpenShards::iterator place) {
    Open& open = place->second;
    unfile(open);
    open.shard->retire();
    closed.push_back(std::move(open.shard));
    open_.erase(place);
  };
  const auto found = open_.find(id);
  if (found != open_.end() && !found->second.shard->is_retired()) return found->second.shard;
  if (found != open_.end()) close(found);

  Open& open = open_[id];
  open.shard = opened;
  file_under(holds_.count(id) > 0 ? held_ : loose_, open, id);
  for (auto place = next_to_close(id); place != open_.end(); place = next_to_close(id)) close(place);
  return opened;
}

ShardStore::OpenShards::iterator ShardStore::next_to_close(ShardId keeping) {
  const bool too_many = open_.size() > limits_.open_shards;
  for (const Uses* uses : {&loose_, &held_}) {
    const bool too_large = uses == &loose_ && loose_head_bytes_ > limits_.loose_head_bytes;
    if ((too_many || too_large) && !uses->empty() && !(uses->front() == keeping)) return open_.find(uses->front());
  }
  return open_.end();
}

void ShardStore::file_under(Uses& uses, Open& open, ShardId id) {
  open.uses = &uses;
  open.use = uses.insert(uses.end(), id);
  open.shard->set_held(&uses == &held_);
  if (&uses == &loose_) loose_head_bytes_ += open.shard->head_bytes();
}

void ShardStore::unfile(Open& open) {
  if (open.uses == &loose_) loose_head_bytes_ -= open.shard->head_bytes();
  open.shard->set_held(false);
  open.uses->erase(open.use);
}

void ShardStore::hold(ShardId id) {
  if (is_made(id.stream)) supply_.want(id);
  const std::lock_guard lock(mutex_);
  if (++holds_[id] == 1) set_held(id, true);
}

bool ShardStore::release(ShardId id) {
  const std::lock_guard lock(mutex_);
  const auto place = holds_.find(id);
  if (place == holds_.end()) return false;
  if (--place->second > 0) return true;
  holds_.erase(place);
  set_held(id, false);
  if (is_made(id.stream)) supply_.unwant(id);
  return false;
}

void ShardStore::set_held(ShardId id, bool is_held) {
  const auto found = open_.find(id);
  if (found == open_.end()) return;
  unfile(found->second);
  file_under(is_held ? held_ : loose_, found->second, id);
}

void ShardStore::claim() { claimed_by_ = fork_generation(); }

void ShardStore::unclaim() {
  supply_.resume();
  const std::lock_guard lock(mutex_);
  for (const auto& [id, count] : std::exchange(holds_, {})) {
    set_held(id, false);
    if (is_made(id.stream)) supply_.unwant(id);
  }
  claimed_by_ = kNobody;
}

}  // namespace stoker
