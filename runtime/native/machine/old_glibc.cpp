// GCC's C++ runtime asks glibc 2.32 and later whether the process has one thread only. With this answer, "no", which is
// always safe, the library also loads on older versions of glibc. The name is seen inside the library only.
#ifdef __linux__
extern "C" {
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;
}
#endif
