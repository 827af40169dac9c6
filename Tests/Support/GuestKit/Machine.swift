// SPDX-License-Identifier: Apache-2.0

/// The machine that a guest's driver runs on: registers, memory and time.
///
/// ``SimulatedMachine`` has the controller in the same process and simulated time. `RemoteMachine`
/// connects to a server and has real time.
public protocol Machine: AnyObject {
    /// The guest's memory.
    var memory: GuestRAM { get }

    /// Reads `count` bytes of the register space in one access.
    func readRegister(at offset: Int, count: Int) -> [UInt8]

    /// Writes to the register space in one access.
    func writeRegister(at offset: Int, _ bytes: [UInt8])

    /// The number of interrupts received on a vector.
    func interruptCount(vector: Int) -> Int

    /// Runs the controller and the devices until a condition holds, for at most `limit`.
    ///
    /// - Returns: whether the condition holds.
    func advance(limit: Duration, until condition: () -> Bool) -> Bool
}

extension Machine {
    /// Runs the controller and the devices until a condition holds, for at most 10 s.
    public func advance(until condition: () -> Bool) -> Bool {
        advance(limit: .seconds(10), until: condition)
    }

    /// Runs the controller and the devices for some time.
    public func pass(_ duration: Duration) { _ = advance(limit: duration) { false } }

    public func read<Value: FixedWidthInteger>(
        _ type: Value.Type = Value.self, at offset: Int
    ) -> Value {
        var value = Value.zero
        let bytes = readRegister(at: offset, count: MemoryLayout<Value>.size)
        for byte in bytes.reversed() { value = value << 8 | Value(byte) }
        return value
    }

    public func write<Value: FixedWidthInteger>(_ value: Value, at offset: Int) {
        writeRegister(at: offset, withUnsafeBytes(of: value.littleEndian) { [UInt8]($0) })
    }

    public func read32(_ offset: Int) -> UInt32 { read(at: offset) }
    public func write32(_ value: UInt32, at offset: Int) { write(value, at: offset) }

    /// A 64-bit register as two 32-bit reads, low half first.
    public func read64(_ offset: Int) -> UInt64 {
        UInt64(read32(offset)) | UInt64(read32(offset + 4)) << 32
    }

    /// A 64-bit register as two 32-bit writes, low half first (xHCI 5.1).
    public func write64(_ value: UInt64, at offset: Int) {
        write32(UInt32(truncatingIfNeeded: value), at: offset)
        write32(UInt32(truncatingIfNeeded: value >> 32), at: offset + 4)
    }
}
