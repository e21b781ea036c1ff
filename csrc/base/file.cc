#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace stoker {
namespace {

SystemError system_error(const std::string& path, const char* action) {
  const int code = errno;
  return SystemError(
      code, path,
      text("cannot ", action, " this file: ", std::strerror(code), ". Check that it is there and readable"));
}

}  // namespace

File::File(std::string path) : path_(std::move(path)) {
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe is refused below, not waited for
  if (fd_ < 0) throw system_error(path_, "open");
  struct stat status{};
  if (::fstat(fd_, &status) != 0 || !S_ISREG(status.st_mode)) {
    if (!S_ISREG(status.st_mode)) errno = EINVAL;
    const SystemError error = system_error(path_, "read shards from");
    ::close(fd_);
    throw error;
  }
  size_bytes_ = static_cast<uint64_t>(status.st_size);  // st_size of a regular file is never negative
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), size_bytes_(other.size_bytes_) {}

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

void File::will_need(Range bytes) const {
  // Advice only: a failure changes nothing but speed.
  ::posix_fadvise(fd_, static_cast<off_t>(bytes.begin), static_cast<off_t>(bytes.size()), POSIX_FADV_WILLNEED);
}

void File::read_at(uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t got = ::pread(fd_, out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw system_error(path_, "read");
    if (got == 0)
      throw corrupt_file(path_, text("ended at byte ", offset, " while it was being read; it was ", size_bytes_,
                                     " bytes long when it was opened"));
    out = out.subspan(static_cast<size_t>(got));
    offset += static_cast<uint64_t>(got);
  }
}

MappedFile::MappedFile(const File& file) {
  if (file.size_bytes() == 0) return;  // mmap refuses a length of 0
  void* address = ::mmap(nullptr, file.size_bytes(), PROT_READ, MAP_SHARED, file.fd(), 0);
  if (address == MAP_FAILED) throw system_error(file.path(), "map");
  bytes_ = {static_cast<const std::byte*>(address), file.size_bytes()};
}

MappedFile::~MappedFile() {
  // munmap takes a mutable pointer; nothing is written.
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void MappedFile::will_need(Range bytes) const {
  bytes.begin -= bytes.begin % page_size_bytes();
  // Advice only: a failure changes nothing but speed. madvise takes a mutable pointer; nothing is written.
  if (bytes.begin < bytes.end)
    ::madvise(const_cast<std::byte*>(bytes_.data()) + bytes.begin, bytes.size(), MADV_WILLNEED);
}

size_t page_size_bytes() {
  static const auto size = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

}  // namespace stoker
