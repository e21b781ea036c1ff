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
  const char* advice = "Check that it is there and readable";
  if (code == EMFILE || code == ENFILE) advice = "Raise the limit on open files (ulimit -n)";
  if (code == ENOMEM) advice = "Raise the limit on memory, or on mappings (vm.max_map_count)";
  return SystemError(code, path, text("cannot ", action, " this file: ", std::strerror(code), ". ", advice));
}

}  // namespace

// A pipe is refused below, not waited for.
File::File(std::string path) : File(path, ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {}

File::File(std::string path, int fd) : path_(std::move(path)), fd_(fd) {
  try {
    check();
  } catch (...) {  // the destructor is not called
    if (fd_ >= 0) ::close(fd_);
    throw;
  }
}

void File::check() {
  if (fd_ < 0) throw system_error(path_, "open");
  struct stat status{};
  if (::fstat(fd_, &status) != 0) throw system_error(path_, "read the size of");
  if (!S_ISREG(status.st_mode))
    throw SystemError(S_ISDIR(status.st_mode) ? EISDIR : EINVAL, path_,
                      text("this is a ", S_ISDIR(status.st_mode) ? "directory" : "special file",
                           ", but a shard is a regular file. Write or fetch the shard again"));
  identity_ = {status.st_dev, status.st_ino, static_cast<uint64_t>(status.st_size),  // never negative
               status.st_mtim.tv_sec, status.st_mtim.tv_nsec};
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), identity_(other.identity_) {}

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
      throw corrupt_file(path_, text("ended at byte ", offset, " while it was being read; it was ", size_bytes(),
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
