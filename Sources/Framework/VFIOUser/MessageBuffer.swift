// SPDX-License-Identifier: Apache-2.0

/// A message to be sent, in a buffer that is reused for each.
///
/// The integers of a message are little-endian. A buffer has room for the longest message that it
/// is made for; an append beyond that traps.
@safe
final class MessageBuffer {
    private let storage: UnsafeMutableBufferPointer<UInt8>
    /// The length of the message in bytes.
    private(set) var count = 0

    /// Creates an empty buffer for messages of at most `capacity` bytes. The kernel allocates the
    /// memory page by page, as it is used.
    init(capacity: Int) {
        unsafe storage = .allocate(capacity: capacity)
    }

    deinit { unsafe storage.deallocate() }

    /// The message. It is valid until the buffer changes.
    var bytes: UnsafeRawBufferPointer {
        unsafe UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(storage)[..<count])
    }

    func removeAll() { count = 0 }

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

    /// Appends `size` bytes. `body` writes the first of them; the others become `rest`.
    func fill(_ size: Int, rest: UInt8, _ body: (inout OutputSpan<UInt8>) -> Void) {
        requireSpace(size)
        let part = unsafe UnsafeMutableBufferPointer(rebasing: storage[count..<count + size])
        var output = unsafe OutputSpan(buffer: part, initializedCount: 0)
        body(&output)
        while !output.isFull { output.append(rest) }
        _ = unsafe output.finalize(for: part)
        count += size
    }
}
