// What boards are checked against: the types Grafana itself is written with. See README.md beside this file.
import type * as bargauge from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type * as heatmap from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type * as timeline from '@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen';
import type * as table from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type * as text from '@grafana/schema/dist/esm/raw/composable/text/panelcfg/x/TextPanelCfg_types.gen';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';
import type * as dashboard from '@grafana/schema/dist/esm/raw/dashboard/x/Dashboard_types.gen';
import type * as common from '@grafana/schema';

export interface Bargauge { options: bargauge.Options }
export interface Heatmap { options: heatmap.Options; custom: heatmap.FieldConfig }
export interface Stat { options: stat.Options }
export interface Statetimeline { options: timeline.Options; custom: timeline.FieldConfig }
export interface Table { options: table.Options; custom: table.FieldConfig }
export interface Text { options: text.Options }
export interface Timeseries { options: timeseries.Options; custom: common.GraphFieldConfig }
// A row may hold panels, so this has their type as well.
export interface Row { row: dashboard.RowPanel }
export interface Settings {
  variable: dashboard.VariableModel;
  link: dashboard.DashboardLink;
  annotation: dashboard.AnnotationQuery;
}
