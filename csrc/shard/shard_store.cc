#include "shard/shard_store.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>

#include "base/error.h"

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

std::shared_ptr<const Shard> ShardStore::get(ShardId id) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = open_.find(id);
    if (found != open_.end() && !found->second.shard->is_retired()) {
      uses_.splice(uses_.end(), uses_, found->second.use);
      return found->second.shard;
    }
  }
  // Not under the mutex: files are slow. Two threads may open the same shard; the first one's is kept.
  const StreamFiles& files = streams_[id.stream];
  const StreamFiles::Entry& entry = files.shards[id.shard];
  auto opened = std::make_shared<const Shard>(find_file(files, entry), files.schemas[entry.schema]);
  Shards closed;
  std::shared_ptr<const Shard> kept = keep(id, std::move(opened), closed);
  for (const auto& shard : closed) pieces_.drop(shard);
  return kept;
}

std::shared_ptr<const Shard> ShardStore::keep(ShardId id, std::shared_ptr<const Shard> opened, Shards& closed) {
  const std::lock_guard lock(mutex_);
  const auto close = [&](std::map<ShardId, Open>::iterator place) {
    place->second.shard->retire();
    head_bytes_ -= place->second.shard->head_bytes();
    closed.push_back(std::move(place->second.shard));
    uses_.erase(place->second.use);
    open_.erase(place);
  };
  const auto found = open_.find(id);
  if (found != open_.end() && !found->second.shard->is_retired()) return found->second.shard;
  if (found != open_.end()) close(found);

  head_bytes_ += opened->head_bytes();
  opened->set_held(holds_.count(id) > 0);
  open_[id] = {opened, uses_.insert(uses_.end(), id)};
  while (open_.size() > 1 && (open_.size() > limits_.open_shards || head_bytes_ > limits_.head_bytes)) {
    const auto last = std::prev(uses_.end());  // the one just opened
    const auto loose = std::find_if(uses_.begin(), last, [&](ShardId other) { return holds_.count(other) == 0; });
    close(open_.find(loose == last ? uses_.front() : *loose));
  }
  return opened;
}

void ShardStore::hold(ShardId id) {
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
  return false;
}

void ShardStore::release_all() {
  const std::lock_guard lock(mutex_);
  for (const auto& [id, count] : std::exchange(holds_, {})) set_held(id, false);
}

void ShardStore::set_held(ShardId id, bool is_held) {
  const auto found = open_.find(id);
  if (found != open_.end()) found->second.shard->set_held(is_held);
}

}  // namespace stoker
