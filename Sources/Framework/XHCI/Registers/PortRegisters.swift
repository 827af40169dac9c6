// SPDX-License-Identifier: Apache-2.0

internal import USB

/// One port of the root hub: its registers and the state machine behind them (xHCI 4.19, 5.4.8).
///
/// Writes move the state machine at once; what a device must be told waits in ``deviceActions``, and the
/// changes that the guest must be told in ``unreported``.
struct PortRegisters {
    /// Whether the port belongs to the USB 3 protocol.
    let isSuperSpeed: Bool
    /// The speed of what is plugged in, whether or not the guest can see it.
    private(set) var attached: USBSpeed?

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
    /// Changes for which there has been no event.
    private(set) var unreported: PortChanges = []
    /// A change came up since USBSTS.PCD was set for the last one.
    var hasNewChange = false
    /// WCE, WDE, WOE.
    private var wakeEnables: UInt32 = 0
    /// PORTPMSC, PORTLI and PORTHLPMC as the guest left them.
    private var powerManagement: UInt32 = 0
    private var linkInfo: UInt32 = 0
    private var hardwareLPM: UInt32 = 0

    /// What the device must be told.
    var deviceActions: DeviceActions = []
    /// Whether the reset in progress is a warm one.
    private var isWarmReset = false

    struct DeviceActions: OptionSet {
        let rawValue: UInt8
        /// The port was reset; ``PortRegisters/finishReset()`` ends it.
        static let reset = DeviceActions(rawValue: 1)
        static let suspend = DeviceActions(rawValue: 2)
        static let resume = DeviceActions(rawValue: 4)
    }

    init(isSuperSpeed: Bool) { self.isSuperSpeed = isSuperSpeed }

    // MARK: - What happens at the connector

    mutating func connect(_ newSpeed: USBSpeed) {
        attached = newSpeed
        if isPowered { showConnection() }
    }

    mutating func disconnect() {
        guard attached != nil else { return }
        attached = nil
        guard isPowered else { return }
        let wasConnected = isConnected
        leave(linkState: .rxDetect)
        if wasConnected { raise(.connect) }
    }

    /// Remote wake-up of the device (xHCI 4.15.2). USB 3 is at work again at once; on USB 2 the
    /// guest ends the resume signalling.
    ///
    /// - Returns: whether the device may go on.
    mutating func wake() -> Bool {
        guard isConnected, linkState == .u3 else { return false }
        linkState = isSuperSpeed ? .u0 : .resume
        raise(.linkState)
        if isSuperSpeed { deviceActions.insert(.resume) }
        return true
    }

    private mutating func showConnection() {
        guard let attached else { return }
        isConnected = true
        speed = UInt32(attached.rawValue)
        // A USB 3 link trains by itself; a USB 2 port waits to be reset.
        isEnabled = isSuperSpeed
        linkState = isSuperSpeed ? .u0 : .polling
        raise(.connect)
    }

    /// Nothing is connected any more, as far as the guest sees.
    private mutating func leave(linkState state: PortLinkState) {
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

    /// Ends a reset, once the device knows of it.
    mutating func finishReset() {
        guard isResetting, isConnected else { return }
        isResetting = false
        isEnabled = true
        linkState = .u0
        raise(isWarmReset ? [.reset, .warmReset] : .reset)
    }

    // MARK: - Changes

    private mutating func raise(_ new: PortChanges) {
        let risen = new.subtracting(changes)
        guard !risen.isEmpty else { return }
        hasNewChange = true
        unreported.formUnion(risen)
        changes.formUnion(risen)
    }

    /// The guest is told of all changes so far.
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

    /// The bits of PORTSC that a narrow write leaves as they are; all others act when written.
    var keptStatusAndControl: UInt32 { statusAndControl & (1 << 9 | Self.wakeMask) }

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
        leave(linkState: on ? .rxDetect : .disabled)
        if on { showConnection() }
    }

    /// PED written as one. A disabled USB 3 port no longer shows its device.
    private mutating func disable() {
        if isSuperSpeed {
            leave(linkState: .disabled)
        } else {
            isEnabled = false
            linkState = .polling
        }
    }

    /// PLS written together with LWS. States that software cannot ask for are ignored.
    private mutating func writeLinkState(_ wanted: PortLinkState) {
        switch wanted {
        case .u0:
            guard isEnabled, linkState == .u3 || linkState == .resume else { return }
            linkState = .u0
            raise(.linkState)
            deviceActions.remove(.suspend)
            deviceActions.insert(.resume)
        case .u2 where !isSuperSpeed && isEnabled && linkState == .u0:
            // A request for L1, which no device of ours takes: L1S says so.
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

    /// PORTPMSC; on USB 2 its three lowest bits are L1S, which the controller sets.
    var powerManagementStatus: UInt32 {
        get { powerManagement }
        set {
            powerManagement =
                isSuperSpeed
                ? newValue & 0x0001_ffff
                : newValue & 0x0001_fff8 | powerManagement & 7
        }
    }

    /// PORTLI: Link Error Count, USB 3 only.
    var linkInformation: UInt32 {
        get { linkInfo }
        set { linkInfo = isSuperSpeed ? newValue & 0xffff : 0 }
    }

    /// PORTHLPMC, USB 2 only.
    var hardwareLPMControl: UInt32 {
        get { hardwareLPM }
        set { hardwareLPM = isSuperSpeed ? 0 : newValue & 0x3fff }
    }
}

/// Port Link States (xHCI 5.4.8); open, because the guest writes them.
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

/// The change bits of PORTSC, in their places.
struct PortChanges: OptionSet {
    let rawValue: UInt32

    /// Bits outside the change bits are dropped, so a whole PORTSC value can be given.
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
