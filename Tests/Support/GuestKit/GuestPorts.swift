// SPDX-License-Identifier: Apache-2.0

/// PORTSC (xHCI 5.4.8).
public struct GuestPortStatus: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    public static let connected = Self(rawValue: 1 << 0)
    public static let enabled = Self(rawValue: 1 << 1)
    public static let reset = Self(rawValue: 1 << 4)
    public static let power = Self(rawValue: 1 << 9)
    /// LWS: the write changes the link state.
    public static let linkWrite = Self(rawValue: 1 << 16)
    public static let connectChange = Self(rawValue: 1 << 17)
    public static let enableChange = Self(rawValue: 1 << 18)
    public static let warmResetChange = Self(rawValue: 1 << 19)
    public static let overCurrentChange = Self(rawValue: 1 << 20)
    public static let resetChange = Self(rawValue: 1 << 21)
    public static let linkChange = Self(rawValue: 1 << 22)
    public static let configurationErrorChange = Self(rawValue: 1 << 23)
    public static let wakeOnConnect = Self(rawValue: 1 << 25)
    public static let wakeOnDisconnect = Self(rawValue: 1 << 26)
    public static let wakeOnOverCurrent = Self(rawValue: 1 << 27)
    public static let warmReset = Self(rawValue: 1 << 31)

    /// All seven change bits.
    public static let changes: Self = [
        .connectChange, .enableChange, .warmResetChange, .overCurrentChange, .resetChange,
        .linkChange, .configurationErrorChange,
    ]

    /// The bits that a write must repeat so that it changes nothing else.
    public var preserved: Self {
        intersection([.power, .wakeOnConnect, .wakeOnDisconnect, .wakeOnOverCurrent])
    }

    public var linkState: LinkState { LinkState(rawValue: UInt8(rawValue >> 5 & 0xf)) }
    public var speed: UInt32 { rawValue >> 10 & 0xf }

    /// Port Link State (PLS).
    public struct LinkState: RawRepresentable, Hashable, Sendable {
        public let rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let u0 = LinkState(rawValue: 0)
        public static let u1 = LinkState(rawValue: 1)
        public static let u2 = LinkState(rawValue: 2)
        public static let u3 = LinkState(rawValue: 3)
        public static let disabled = LinkState(rawValue: 4)
        public static let rxDetect = LinkState(rawValue: 5)
        public static let inactive = LinkState(rawValue: 6)
        public static let polling = LinkState(rawValue: 7)
        public static let recovery = LinkState(rawValue: 8)
        public static let hotReset = LinkState(rawValue: 9)
        public static let compliance = LinkState(rawValue: 10)
        public static let resume = LinkState(rawValue: 15)
    }
}

extension GuestDriver {
    public func port(_ number: Int) -> GuestPortStatus {
        GuestPortStatus(rawValue: machine.read32(registers.port(number)))
    }

    /// Writes PORTSC with `bits` set and everything else unchanged.
    public func writePort(_ number: Int, _ bits: GuestPortStatus) {
        machine.write32(
            port(number).preserved.union(bits).rawValue, at: registers.port(number))
    }

    /// Clears change bits.
    public func clearPort(_ number: Int, _ bits: GuestPortStatus = .changes) {
        writePort(number, bits.intersection(.changes))
    }

    /// Requests a link state: PLS with LWS.
    public func setLinkState(_ number: Int, _ state: GuestPortStatus.LinkState) {
        let keep = port(number).preserved.rawValue
        machine.write32(
            keep | UInt32(state.rawValue) << 5 | GuestPortStatus.linkWrite.rawValue,
            at: registers.port(number))
    }

    /// Waits until PORTSC meets a condition.
    @discardableResult
    public func waitForPort(
        _ number: Int, _ what: String, limit: Duration = .seconds(10),
        until condition: (GuestPortStatus) -> Bool
    ) throws -> GuestPortStatus {
        var last = port(number)
        let reached = machine.advance(limit: limit) {
            collect()
            last = port(number)
            return condition(last)
        }
        guard reached else {
            throw GuestError.timeout(
                "port \(number): \(what); PORTSC 0x\(String(last.rawValue, radix: 16))")
        }
        return last
    }

    /// The numbers of the connected ports, ascending.
    public var connectedPorts: [Int] {
        (1...max(registers.ports, 1)).filter { port($0).contains(.connected) }
    }

    /// Waits for a port with CCS and CSC set, and returns its number.
    public func waitForConnection() throws -> Int {
        var found: Int?
        _ = machine.advance {
            collect()
            found = (1...max(registers.ports, 1)).first {
                port($0).isSuperset(of: [.connected, .connectChange])
            }
            return found != nil
        }
        guard let found else { throw GuestError.timeout("no port shows a new connection") }
        return found
    }

    /// Resets the port and waits until it is enabled.
    public func resetPort(_ number: Int) throws {
        writePort(number, .reset)
        try waitForPort(number, "reset") { $0.contains(.resetChange) }
        try waitForPort(number, "enabled after reset") { $0.contains(.enabled) }
        clearPort(number)
    }

    /// Brings the device on a port to the Addressed state: reset, Enable Slot, Address Device.
    public func address(port number: Int) throws -> GuestSlot {
        try waitForPort(number, "connection") { $0.contains(.connected) }
        clearPort(number, .connectChange)
        if !port(number).contains(.enabled) { try resetPort(number) }
        clearPort(number)
        let slot = try enableSlot(port: number)
        try slot.address()
        events.removeAll { $0.isPortChange && $0.port == number }
        return slot
    }

    /// Waits for a new connection and brings its device to the Addressed state.
    public func addressNewDevice() throws -> GuestSlot {
        try address(port: waitForConnection())
    }
}
