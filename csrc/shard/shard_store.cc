#include "shard/shard_store.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
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

ShardFile describe(const StreamFiles& stream, const StreamFiles::Entry& entry) {
  ShardFile file;
  file.stream = stream.name;
  if (!stream.follow_links) file.root = stream.directory;
  file.raw_bytes = file.file_bytes = entry.raw_bytes;
  file.num_samples = entry.num_samples;
  file.tokens = entry.tokens;
  file.path = stream.directory + "/" + entry.raw_basename;
  return file;
}

void set_compressed(ShardFile& file, const StreamFiles& stream, const StreamFiles::Entry& entry) {
  file.format = ShardFile::Format::kZstd;
  file.path = stream.directory + "/" + entry.zip_basename;
  file.file_bytes = entry.zip_bytes;
  if (!stream.expand_directory.empty()) file.expanded_path = expanded_path(stream, file.path, entry.raw_basename);
}

ShardFile find_file(const StreamFiles& stream, const StreamFiles::Entry& entry) {
  ShardFile file = describe(stream, entry);
  // A compressed shard may lie there decompressed, as MosaicML Streaming leaves it in its cache.
  if (!entry.zip_basename.empty() && ::access(file.path.c_str(), F_OK) != 0) set_compressed(file, stream, entry);
  return file;
}

ShardFile supplied_file(const StreamFiles& stream, const StreamFiles::Entry& entry, SuppliedFile supplied) {
  ShardFile file = describe(stream, entry);
  if (supplied.is_compressed) set_compressed(file, stream, entry);
  if (stream.supply == StreamFiles::Supply::kMade) {  // another file than that of the index
    file.path = supplied.file->path();
    file.raw_bytes = file.file_bytes = supplied.file->size_bytes();
    file.tokens.reset();
    file.root.clear();
  }
  file.opened = std::move(supplied.file);
  return file;
}

}  // namespace

ShardStore::ShardStore(std::vector<StreamFiles> streams, uint64_t cache_bytes, Limits limits)
    : streams_(std::move(streams)),
      has_supplied_streams_(
          std::any_of(streams_.begin(), streams_.end(),
                      [](const StreamFiles& stream) { return stream.supply != StreamFiles::Supply::kThere; })),
      limits_(limits),
      pieces_(cache_bytes) {}

std::shared_ptr<const Shard> ShardStore::get(ShardId id) {
  if (std::shared_ptr<const Shard> found = find_open(id)) return found;
  if (!is_supplied(id.stream)) return open_and_keep(id, std::nullopt);
  return open_and_keep(id, supply_.await(id));
}

std::shared_ptr<const Shard> ShardStore::get_if_there(ShardId id) {
  if (std::shared_ptr<const Shard> found = find_open(id)) return found;
  if (!is_supplied(id.stream)) return open_and_keep(id, std::nullopt);
  std::optional<SuppliedFile> file = supply_.take_file(id);
  return file ? open_and_keep(id, std::move(file)) : nullptr;
}

std::shared_ptr<const Shard> ShardStore::find_open(ShardId id) {
  const uint64_t generation = claimed_by_;
  if (generation != kNobody) check_same_process(generation);
  const std::lock_guard lock(mutex_);
  const auto found = open_.find(id);
  if (found == open_.end() || found->second.shard->is_retired()) return nullptr;
  Open& open = found->second;
  open.uses->splice(open.uses->end(), *open.uses, open.use);
  return open.shard;
}

// Not under the mutex: files are slow. Two threads may open the same shard; the first one's is kept.
std::shared_ptr<const Shard> ShardStore::open_and_keep(ShardId id, std::optional<SuppliedFile> file) {
  std::shared_ptr<const Shard> kept = keep(id, open(id, std::move(file)));
  let_go();
  return kept;
}

std::shared_ptr<const Shard> ShardStore::open(ShardId id, std::optional<SuppliedFile> file) {
  const StreamFiles& stream = streams_[id.stream];
  const StreamFiles::Entry& entry = stream.shards[id.shard];
  const Schema& schema = stream.schemas[entry.schema];
  if (!file) return std::make_shared<const Shard>(find_file(stream, entry), schema);
  if (!file->file) return Shard::missing(describe(stream, entry), schema);
  return std::make_shared<const Shard>(supplied_file(stream, entry, *std::move(file)), schema);
}

std::shared_ptr<const Shard> ShardStore::keep(ShardId id, std::shared_ptr<const Shard> opened) {
  const std::lock_guard lock(mutex_);
  const auto found = open_.find(id);
  if (found != open_.end() && !found->second.shard->is_retired()) return found->second.shard;
  if (found != open_.end()) close(found);

  Open& open = open_[id];
  open.shard = opened;
  file_under(holds_.count(id) > 0 ? held_ : loose_, open, id);
  for (auto place = next_to_close(id); place != open_.end(); place = next_to_close(id)) close(place);
  return opened;
}

void ShardStore::let_go() {
  std::vector<std::shared_ptr<const Shard>> closed;
  {
    const std::lock_guard lock(mutex_);
    closed.swap(closed_);
  }
  for (const auto& shard : closed) pieces_.drop(shard);
}

void ShardStore::close(OpenShards::iterator place) {
  Open& open = place->second;
  unfile(open);
  open.shard->retire();
  closed_.push_back(std::move(open.shard));
  open_.erase(place);
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

bool ShardStore::is_open(ShardId id) const {
  const std::lock_guard lock(mutex_);
  return open_.count(id) > 0;
}

void ShardStore::want(ShardId id) {
  if (!is_open(id)) supply_.want(id);
}

void ShardStore::hold(ShardId id) {
  {
    const std::lock_guard lock(mutex_);
    if (++holds_[id] > 1) return;
    set_held(id, true);
  }
  if (is_supplied(id.stream)) want(id);
}

// Called under the engine's mutex: what is closed is let go later, since giving memory back takes a while.
bool ShardStore::release(ShardId id) {
  {
    const std::lock_guard lock(mutex_);
    const auto place = holds_.find(id);
    if (place == holds_.end()) return false;
    if (--place->second > 0) return true;
    holds_.erase(place);
    set_held(id, false);
    const auto found = open_.find(id);
    if (streams_[id.stream].closes_unheld && found != open_.end()) close(found);
  }
  if (is_supplied(id.stream)) supply_.unwant(id);
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
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, count] : std::exchange(holds_, {})) set_held(id, false);
    claimed_by_ = kNobody;
  }
  let_go();
  supply_.resume();
}

std::vector<ShardId> ShardStore::held() const {
  const std::lock_guard lock(mutex_);
  std::vector<ShardId> out;
  for (const auto& [id, count] : holds_)
    if (is_supplied(id.stream)) out.push_back(id);
  return out;
}

}  // namespace stoker
