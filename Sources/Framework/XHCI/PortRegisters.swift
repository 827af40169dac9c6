// SPDX-License-Identifier: Apache-2.0

/// The registers of one root hub port (xHCI 5.4.8 to 5.4.11), and what the driver asked of it.
///
/// A write changes what changes at once and remembers the rest as requests, which the root hub
/// carries out.
struct PortRegisters {
    let isSuperSpeed: Bool

    /// CCS.
    var isConnected = false
    /// PED.
    var isEnabled = false
    /// PR: a reset is under way.
    var isResetting = false
    /// PLS.
    var linkState: LinkState = .rxDetect
    /// PP.
    var hasPower = true
    /// Port Speed.
    var speed: UInt8 = 0
    var changes: Changes = []
    /// Whether the driver was told of `changes` (PSCEG, xHCI 4.19.2).
    var isSignalled = false

    /// Requests that the root hub has not seen.
    var requests: Requests = []
    var requestedLinkState: LinkState = .u0

    /// PIC, WCE, WDE and WOE: stored for the driver.
    private var stored: UInt32 = 0
    private(set) var powerManagement: UInt32 = 0
    private(set) var hardwareLPM: UInt32 = 0

    init(isSuperSpeed: Bool) { self.isSuperSpeed = isSuperSpeed }

    /// Port link states (xHCI table 5-27); open, because the driver writes them.
    struct LinkState: RawRepresentable, Equatable {
        let rawValue: UInt8

        static let u0 = LinkState(rawValue: 0)
        static let u1 = LinkState(rawValue: 1)
        static let u2 = LinkState(rawValue: 2)
        static let u3 = LinkState(rawValue: 3)
        static let disabled = LinkState(rawValue: 4)
        static let rxDetect = LinkState(rawValue: 5)
        static let polling = LinkState(rawValue: 7)
        static let resume = LinkState(rawValue: 15)
    }

    /// The change bits of PORTSC, in their places.
    struct Changes: OptionSet {
        let rawValue: UInt32

        /// CSC.
        static let connect = Changes(rawValue: 1 << 17)
        /// PEC.
        static let enabled = Changes(rawValue: 1 << 18)
        /// WRC.
        static let warmReset = Changes(rawValue: 1 << 19)
        /// OCC.
        static let overCurrent = Changes(rawValue: 1 << 20)
        /// PRC.
        static let reset = Changes(rawValue: 1 << 21)
        /// PLC.
        static let linkState = Changes(rawValue: 1 << 22)
        /// CEC.
        static let configError = Changes(rawValue: 1 << 23)

        static let all = Changes(rawValue: 0x00fe_0000)
    }

    /// What a write of PORTSC asks for.
    struct Requests: OptionSet {
        let rawValue: UInt8

        static let reset = Requests(rawValue: 1)
        static let warmReset = Requests(rawValue: 2)
        static let disable = Requests(rawValue: 4)
        static let powerOn = Requests(rawValue: 8)
        static let powerOff = Requests(rawValue: 16)
        static let linkState = Requests(rawValue: 32)
    }

    /// PORTSC.
    var statusAndControl: UInt32 {
        var value = stored | changes.rawValue
        value[bit: 0] = isConnected
        value[bit: 1] = isEnabled
        value[bit: 4] = isResetting
        value[bits: 5...8] = UInt32(linkState.rawValue)
        value[bit: 9] = hasPower
        value[bits: 10...13] = UInt32(speed)
        return value
    }

    /// Writes the bytes of PORTSC that `enabled` covers.
    mutating func writeStatusAndControl(_ value: UInt32, enabled mask: UInt32) {
        // Pulses and RW1C bits count where they are written as one.
        let set = value & mask
        changes.subtract(Changes(rawValue: set).intersection(.all))
        if changes.isEmpty { isSignalled = false }

        // PIC and the wake bits; WPR and WCE to WOE share the last byte.
        let storable: UInt32 = 3 << 14 | 7 << 25
        stored = stored & ~(storable & mask) | set & storable

        if mask[bit: 9] && value[bit: 9] != hasPower {
            requests.insert(hasPower ? .powerOff : .powerOn)
            requests.remove(hasPower ? .powerOn : .powerOff)
            if hasPower { return }
        }
        guard hasPower else { return }
        if set[bit: 1] && isEnabled { requests.insert(.disable) }
        if isSuperSpeed && set[bit: 31] {
            requests.insert(.warmReset)
            isResetting = true
        } else if set[bit: 4] {
            requests.insert(.reset)
            isResetting = true
        }
        if set[bit: 16] {
            requests.insert(.linkState)
            requestedLinkState = LinkState(rawValue: UInt8(value[bits: 5...8]))
        }
    }

    /// Writes PORTPMSC: timeouts on USB 3, L1 settings on USB 2 (whose status bits 2:0 are ours).
    mutating func writePowerManagement(_ value: UInt32, enabled mask: UInt32) {
        let writable: UInt32 = (isSuperSpeed ? 0x0001_ffff : 0xf001_fff8) & mask
        powerManagement = powerManagement & ~writable | value & writable
    }

    /// Writes PORTHLPMC, which USB 2 ports have.
    mutating func writeHardwareLPM(_ value: UInt32, enabled mask: UInt32) {
        guard !isSuperSpeed else { return }
        let writable: UInt32 = 0x3fff & mask
        hardwareLPM = hardwareLPM & ~writable | value & writable
    }
}
