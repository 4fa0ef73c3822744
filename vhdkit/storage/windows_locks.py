"""The calls of Windows for locks, by ctypes: Python's own `msvcrt.locking` has no shared ones."""

from __future__ import annotations

import sys

if sys.platform == "win32":
    import ctypes
    import msvcrt
    from ctypes import wintypes

    _FAIL_IMMEDIATELY, _EXCLUSIVE = 1, 2
    _INVALID_FUNCTION, _NOT_SUPPORTED, _LOCK_VIOLATION = 1, 50, 33
    # Files end long before; the offset is read as a signed number, which this still is.
    _BYTE = (1 << 63) - (1 << 16)

    class _Overlapped(ctypes.Structure):
        _fields_ = (
            ("internal", ctypes.c_void_p),
            ("internal_high", ctypes.c_void_p),
            ("offset", wintypes.DWORD),
            ("offset_high", wintypes.DWORD),
            ("event", wintypes.HANDLE),
        )

    _kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    _pointer = ctypes.POINTER(_Overlapped)
    _three = [wintypes.DWORD] * 3
    _kernel.LockFileEx.argtypes = [wintypes.HANDLE, wintypes.DWORD, *_three, _pointer]
    _kernel.LockFileEx.restype = wintypes.BOOL
    _kernel.UnlockFileEx.argtypes = [wintypes.HANDLE, *_three, _pointer]
    _kernel.UnlockFileEx.restype = wintypes.BOOL

    def _place() -> _Overlapped:
        return _Overlapped(offset=_BYTE & 0xFFFFFFFF, offset_high=_BYTE >> 32)

    def lock_byte(descriptor: int, exclusive: bool) -> bool:
        """Lock the byte at once; False if another has it, True also where the file system has no locks."""
        flags = _FAIL_IMMEDIATELY | (_EXCLUSIVE if exclusive else 0)
        handle = msvcrt.get_osfhandle(descriptor)
        if _kernel.LockFileEx(handle, flags, 0, 1, 0, ctypes.byref(_place())):
            return True
        code = ctypes.get_last_error()
        if code == _LOCK_VIOLATION:
            return False
        if code in {_INVALID_FUNCTION, _NOT_SUPPORTED}:
            return True
        raise ctypes.WinError(code)

    def unlock_byte(descriptor: int) -> None:
        """Give the byte back, if it is held."""
        _kernel.UnlockFileEx(msvcrt.get_osfhandle(descriptor), 0, 1, 0, ctypes.byref(_place()))
