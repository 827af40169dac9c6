// SPDX-License-Identifier: Apache-2.0

/// A message being written: a piece of memory that is used again for each.
@safe
final class MessageBuffer {
    private let storage: UnsafeMutableBufferPointer<UInt8>
    private(set) var count = 0

    /// An empty buffer that holds up to `capacity` bytes. The system provides the memory as it is
    /// used.
    init(capacity: Int) {
        unsafe storage = .allocate(capacity: capacity)
    }

    deinit { unsafe storage.deallocate() }

    /// The written bytes, for the system call that sends them.
    var bytes: UnsafeRawBufferPointer {
        unsafe UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(storage)[..<count])
    }

    func removeAll() { count = 0 }

    /// Our own messages have bounds, which the buffers are made for.
    private func requireSpace(_ size: Int) {
        let capacity = unsafe storage.count
        precondition(capacity - count >= size, "\(size) more than \(count) of \(capacity) bytes")
    }

    func append<Value: FixedWidthInteger & UnsignedInteger>(_ value: Value) {
        let size = MemoryLayout<Value>.size
        requireSpace(size)
        for index in 0..<size {
            unsafe storage[count + index] = UInt8(truncatingIfNeeded: value >> Value(8 * index))
        }
        count += size
    }

    func append(contentsOf bytes: some Collection<UInt8>) {
        for byte in bytes { append(byte) }
    }

    func append(_ bytes: UnsafeRawBufferPointer) {
        requireSpace(bytes.count)
        let target = unsafe UnsafeMutableRawBufferPointer(
            rebasing: UnsafeMutableRawBufferPointer(storage)[count...])
        unsafe target.copyMemory(from: bytes)
        count += bytes.count
    }

    /// Appends `size` bytes that `body` produces; what it leaves out becomes `rest`.
    func fill(_ size: Int, rest: UInt8, _ body: (inout OutputSpan<UInt8>) -> Void) {
        requireSpace(size)
        let part = unsafe UnsafeMutableBufferPointer(rebasing: storage[count..<count + size])
        var output = unsafe OutputSpan(buffer: part, initializedCount: 0)
        body(&output)
        while !output.isFull { output.append(rest) }
        _ = unsafe output.finalize(for: part)
        count += size
    }

    /// Overwrites the four bytes at an offset that was written before.
    func replace(at offset: Int, by value: UInt32) {
        precondition(offset + 4 <= count, "\(count) bytes are written")
        for index in 0..<4 {
            unsafe storage[offset + index] = UInt8(truncatingIfNeeded: value >> UInt32(8 * index))
        }
    }
}
