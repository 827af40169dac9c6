// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The registers of a root hub port and the port state machine behind them (xHCI 4.19, 5.4.8).
///
/// Writes advance the state machine at once. The engine's next service pass applies
/// ``deviceActions`` to the attached device and posts an event for the changes in ``unreported``.
struct PortRegisters {
    /// Whether the port belongs to the USB 3 protocol.
    let isSuperSpeed: Bool
    /// The speed of the attached device, set even while the port hides the device from the guest;
    /// `nil` if none is attached.
    private(set) var attachedSpeed: USBSpeed?

    /// CCS.
    private(set) var isConnected = false
    /// PED.
    private(set) var isEnabled = false
    /// PR.
    private(set) var isResetting = false
    /// PP.
    private(set) var isPowered = true
    /// PLS.
    private(set) var linkState = PortLinkState.rxDetect
    /// Port Speed.
    private var speed: UInt32 = 0
    /// CSC, PEC, WRC, OCC, PRC, PLC, CEC.
    private(set) var changes: PortChanges = []
    /// The changes for which no Port Status Change Event has been posted.
    private(set) var unreported: PortChanges = []
    /// A change bit was set, and USBSTS.PCD has not yet been set for it.
    var hasNewChange = false
    /// WCE, WDE, WOE.
    private var wakeEnables: UInt32 = 0
    // The values of PORTPMSC, PORTLI and PORTHLPMC.
    private var powerManagement: UInt32 = 0
    private var linkInfo: UInt32 = 0
    private var hardwareLPM: UInt32 = 0

    /// The requests of the guest that have not reached the attached device yet.
    var deviceActions: DeviceActions = []
    /// Whether the reset in progress is a Warm Reset.
    private var isWarmReset = false

    /// Requests of the guest to the device at a port.
    struct DeviceActions: OptionSet {
        let rawValue: UInt8
        /// A port reset; ``PortRegisters/finishReset()`` completes it.
        static let reset = DeviceActions(rawValue: 1)
        static let suspend = DeviceActions(rawValue: 2)
        static let resume = DeviceActions(rawValue: 4)
    }

    init(isSuperSpeed: Bool) { self.isSuperSpeed = isSuperSpeed }

    // MARK: - Attachment and remote wake-up

    mutating func connect(_ speed: USBSpeed) {
        attachedSpeed = speed
        if isPowered { showConnection() }
    }

    mutating func disconnect() {
        guard attachedSpeed != nil else { return }
        attachedSpeed = nil
        guard isPowered else { return }
        let wasConnected = isConnected
        clearConnection(linkState: .rxDetect)
        if wasConnected { raise(.connect) }
    }

    /// Signals remote wake-up of the device (xHCI 4.15.2). A USB 3 link returns to U0 at once; on
    /// USB 2 software ends the resume signalling by writing U0.
    ///
    /// - Returns: `false` if the port is not suspended.
    mutating func wake() -> Bool {
        guard isConnected, linkState == .u3 else { return false }
        linkState = isSuperSpeed ? .u0 : .resume
        raise(.linkState)
        if isSuperSpeed { deviceActions.insert(.resume) }
        return true
    }

    /// Sets CCS and CSC if a device is attached.
    private mutating func showConnection() {
        guard let attachedSpeed else { return }
        isConnected = true
        speed = UInt32(attachedSpeed.rawValue)
        // A USB 3 link trains by itself; a USB 2 port is enabled by a reset (xHCI 4.19.1.1).
        isEnabled = isSuperSpeed
        linkState = isSuperSpeed ? .u0 : .polling
        raise(.connect)
    }

    /// Clears CCS, PED, PR and Port Speed, and enters a link state without a connection.
    private mutating func clearConnection(linkState state: PortLinkState) {
        isConnected = false
        isEnabled = false
        isResetting = false
        linkState = state
        speed = 0
        deviceActions = []
    }

    // MARK: - Reset

    private mutating func startReset(warm: Bool) {
        guard isConnected else { return }
        isResetting = true
        isWarmReset = warm
        deviceActions = .reset
    }

    /// Completes a reset after the device has been reset.
    mutating func finishReset() {
        guard isResetting, isConnected else { return }
        isResetting = false
        isEnabled = true
        linkState = .u0
        raise(isWarmReset ? [.reset, .warmReset] : .reset)
    }

    // MARK: - Changes

    /// Sets change bits. A bit that is already set causes no further event (xHCI 4.19.2).
    private mutating func raise(_ new: PortChanges) {
        let added = new.subtracting(changes)
        guard !added.isEmpty else { return }
        hasNewChange = true
        unreported.formUnion(added)
        changes.formUnion(added)
    }

    /// Marks all changes so far as reported by a Port Status Change Event.
    mutating func markReported() { unreported = [] }

    // MARK: - PORTSC

    var statusAndControl: UInt32 {
        var value: UInt32 = changes.rawValue | wakeEnables
        value[bit: 0] = isConnected
        value[bit: 1] = isEnabled
        value[bit: 4] = isResetting
        value[bits: 5...8] = UInt32(linkState.rawValue)
        value[bit: 9] = isPowered
        value[bits: 10...13] = speed
        return value
    }

    /// PORTSC with only PP and the wake enable bits. A 1 written to any other writable bit has an
    /// effect.
    var preservedStatusAndControl: UInt32 { statusAndControl & (1 << 9 | Self.wakeMask) }

    private static let wakeMask: UInt32 = 0x0e00_0000

    mutating func writeStatusAndControl(_ value: UInt32) {
        changes.subtract(PortChanges(rawValue: value))
        unreported.formIntersection(changes)
        wakeEnables = value & Self.wakeMask
        setPower(value[bit: 9])
        guard isPowered else { return }
        if value[bit: 1], isEnabled { disable() }
        if value[bit: 31], isSuperSpeed {
            startReset(warm: true)
        } else if value[bit: 4] {
            startReset(warm: false)
        } else if value[bit: 16], !isResetting {
            writeLinkState(PortLinkState(rawValue: UInt8(value[bits: 5...8])))
        }
    }

    private mutating func setPower(_ on: Bool) {
        guard on != isPowered else { return }
        isPowered = on
        clearConnection(linkState: on ? .rxDetect : .disabled)
        if on { showConnection() }
    }

    /// Disables the port: PED written as one, or PLS written as Disabled. A USB 3 port then also
    /// drops its connection.
    private mutating func disable() {
        if isSuperSpeed {
            clearConnection(linkState: .disabled)
        } else {
            isEnabled = false
            linkState = .polling
        }
    }

    /// Writes PLS with LWS set. Transitions that software cannot request are ignored.
    private mutating func writeLinkState(_ requested: PortLinkState) {
        switch requested {
        case .u0:
            guard isEnabled, linkState == .u3 || linkState == .resume else { return }
            linkState = .u0
            raise(.linkState)
            deviceActions.remove(.suspend)
            deviceActions.insert(.resume)
        case .u2 where !isSuperSpeed && isEnabled && linkState == .u0:
            // L1 is not supported, which L1S reports as Not Supported.
            powerManagement[bits: 0...2] = 3
            raise(.linkState)
        case .u3:
            guard isEnabled, linkState != .u3 else { return }
            linkState = .u3
            deviceActions.remove(.resume)
            deviceActions.insert(.suspend)
        case .disabled where isSuperSpeed && isConnected:
            disable()
        case .rxDetect where isSuperSpeed && linkState == .disabled:
            linkState = .rxDetect
            showConnection()
        case .resume where !isSuperSpeed && linkState == .u3:
            linkState = .resume
        default:
            break
        }
    }

    // MARK: - PORTPMSC, PORTLI, PORTHLPMC

    /// PORTPMSC. On USB 2, bits 2:0 are L1S, which is read-only for software.
    var powerManagementStatus: UInt32 {
        get { powerManagement }
        set {
            powerManagement =
                isSuperSpeed
                ? newValue & 0x0001_ffff
                : newValue & 0x0001_fff8 | powerManagement & 7
        }
    }

    /// PORTLI: the Link Error Count; USB 3 only.
    var linkInformation: UInt32 {
        get { linkInfo }
        set { linkInfo = isSuperSpeed ? newValue & 0xffff : 0 }
    }

    /// PORTHLPMC; USB 2 only.
    var hardwareLPMControl: UInt32 {
        get { hardwareLPM }
        set { hardwareLPM = isSuperSpeed ? 0 : newValue & 0x3fff }
    }
}

/// A Port Link State (xHCI 5.4.8). The guest writes it, so it is not an enum: any value can occur.
struct PortLinkState: RawRepresentable, Equatable {
    let rawValue: UInt8
    static let u0 = PortLinkState(rawValue: 0)
    static let u2 = PortLinkState(rawValue: 2)
    static let u3 = PortLinkState(rawValue: 3)
    static let disabled = PortLinkState(rawValue: 4)
    static let rxDetect = PortLinkState(rawValue: 5)
    static let polling = PortLinkState(rawValue: 7)
    static let resume = PortLinkState(rawValue: 15)
}

/// The change bits of PORTSC, at their bit positions in the register.
struct PortChanges: OptionSet {
    let rawValue: UInt32

    /// The change bits of a PORTSC value; its other bits are dropped.
    init(rawValue: UInt32) { self.rawValue = rawValue & 0x00fe_0000 }

    /// CSC.
    static let connect = PortChanges(rawValue: 1 << 17)
    /// WRC.
    static let warmReset = PortChanges(rawValue: 1 << 19)
    /// PRC.
    static let reset = PortChanges(rawValue: 1 << 21)
    /// PLC.
    static let linkState = PortChanges(rawValue: 1 << 22)
}
